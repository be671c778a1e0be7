"""The run file's ``serve``: how `amidkd serve` listens, and how much it takes on."""

import ipaddress

from pydantic import Field, model_validator

from amidkd.config.base import Section

__all__ = ["ServeConfig"]


class ServeConfig(Section):
    """A teacher's server."""

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` is every network of this machine.")
    port: int = Field(8765, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    token_variable: str | None = Field(
        None, description="Environment variable that holds the bearer token which clients must send. Default: no token."
    )
    open: bool = Field(False, description="Listen beyond this machine without a token: whoever reaches it may use it.")
    max_rows: int = Field(256, gt=0, description="Most rows of a request.")
    max_tokens: int | None = Field(None, gt=1, description="Longest row in tokens. Default: the model's context.")
    max_top_k: int = Field(1024, gt=0, description="Most tokens that `top_k` may ask for at a position.")
    max_request_mb: float = Field(16.0, gt=0, description="Largest request, in MiB.")
    max_answer_mb: float = Field(256.0, gt=0, description="Largest answer, in MiB.")
    queue: int = Field(64, gt=0, description="Requests held at once; one more is told to come back later.")
    batch_tokens: int = Field(16384, gt=0, description="Tokens in a forward pass, padding included, of all clients.")
    timeout: float = Field(120.0, gt=0, description="Seconds within which a request is answered or given up.")

    @model_validator(mode="after")
    def _not_open_by_mistake(self) -> "ServeConfig":
        if not (self.is_loopback or self.token_variable or self.open):
            raise ValueError(
                f"host: {self.host} can be reached from other machines, and no token is asked for; set "
                "serve.token_variable, or serve.open=true where the network itself is closed"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
