"""The works that a run may cite, with their BibTeX."""

from dataclasses import dataclass

__all__ = ["CITATIONS", "Citation"]


@dataclass(frozen=True)
class Citation:
    """A work and its BibTeX entry.

    Args:
        key: Key of the entry.
        kind: BibTeX type of the entry, such as ``inproceedings``.
        use: What of it a run used, in a few words.
        fields: Fields of the entry by name; ``author``, ``title`` and ``year`` are always there.
    """

    key: str
    kind: str
    use: str
    fields: dict[str, str]

    @property
    def bibtex(self) -> str:
        """The entry as text."""
        lines = [f"  {name} = {{{value}}}," for name, value in self.fields.items()]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"])

    @property
    def short(self) -> str:
        """First author, year and title, in one line of plain text."""
        authors = self.fields["author"].split(" and ")
        first = authors[0].split(",")[0]
        others = " et al." if len(authors) > 2 else (f" and {authors[1].split(',')[0]}" if len(authors) == 2 else "")
        title = self.fields["title"].replace("{", "").replace("}", "")
        for source, shown in (("$\\alpha$", "α"), ("$\\beta$", "β")):
            title = title.replace(source, shown)
        return f"{first}{others} ({self.fields['year']}): {title}"


def _entry(key: str, kind: str, use: str, author: str, title: str, year: int, **fields: str) -> Citation:
    return Citation(key, kind, use, {"author": author, "title": title, "year": str(year), **fields})


_ICLR = "International Conference on Learning Representations"
_ICML = "International Conference on Machine Learning"

_ALL = (
    _entry(
        "shin2026amid",
        "inproceedings",
        "α-mixture assistant",
        "Shin, Donghyeok and Kim, Yeongmin and Jo, Suhyeon and Na, Byeonghu and Moon, Il-Chul",
        "{AMiD}: Knowledge Distillation for {LLMs} with $\\alpha$-mixture Assistant Distribution",
        2026,
        booktitle=_ICLR,
        eprint="2510.15982",
        archiveprefix="arXiv",
    ),
    _entry(
        "amari2007integration",
        "article",
        "α-integration of distributions",
        "Amari, Shun-ichi",
        "Integration of Stochastic Models by Minimizing $\\alpha$-Divergence",
        2007,
        journal="Neural Computation",
        volume="19",
        number="10",
        pages="2780--2796",
    ),
    _entry(
        "ko2024distillm",
        "inproceedings",
        "skew KL divergence; adaptive use of the student's text",
        "Ko, Jongwoo and Kim, Sungnyun and Chen, Tianyi and Yun, Se-Young",
        "{DistiLLM}: Towards Streamlined Distillation for Large Language Models",
        2024,
        booktitle=_ICML,
        eprint="2402.03898",
        archiveprefix="arXiv",
    ),
    _entry(
        "agarwal2024gkd",
        "inproceedings",
        "generalised Jensen–Shannon objective; learning from the student's own text",
        "Agarwal, Rishabh and Vieillard, Nino and Zhou, Yongchao and Stanczyk, Piotr and Ramos, Sabela "
        "and Geist, Matthieu and Bachem, Olivier",
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
        2024,
        booktitle=_ICLR,
        eprint="2306.13649",
        archiveprefix="arXiv",
    ),
    _entry(
        "shing2025taid",
        "inproceedings",
        "geometric interpolation as a detached target, adaptive schedule",
        "Shing, Makoto and Misaki, Kou and Bao, Han and Yokoi, Sho and Akiba, Takuya",
        "{TAID}: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in Language Models",
        2025,
        booktitle=_ICLR,
        eprint="2501.16937",
        archiveprefix="arXiv",
    ),
    _entry(
        "wang2025abkd",
        "inproceedings",
        "α-β-divergence for distillation",
        "Wang, Guanghui and Yang, Zhiyong and Wang, Zitai and Wang, Shi and Xu, Qianqian and Huang, Qingming",
        "{ABKD}: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation "
        "via $\\alpha$-$\\beta$-Divergence",
        2025,
        booktitle=_ICML,
        eprint="2505.04560",
        archiveprefix="arXiv",
    ),
    _entry(
        "gu2024minillm",
        "inproceedings",
        "reverse KL, language-model loss on a corpus, or the instruction prompt",
        "Gu, Yuxian and Dong, Li and Wei, Furu and Huang, Minlie",
        "{MiniLLM}: Knowledge Distillation of Large Language Models",
        2024,
        booktitle=_ICLR,
        eprint="2306.08543",
        archiveprefix="arXiv",
    ),
    _entry(
        "hinton2015distilling",
        "misc",
        "distillation on the teacher's distribution",
        "Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff",
        "Distilling the Knowledge in a Neural Network",
        2015,
        eprint="1503.02531",
        archiveprefix="arXiv",
    ),
    _entry(
        "kim2016sequence",
        "inproceedings",
        "training on the teacher's answers",
        "Kim, Yoon and Rush, Alexander M.",
        "Sequence-Level Knowledge Distillation",
        2016,
        booktitle="Conference on Empirical Methods in Natural Language Processing",
        eprint="1606.07947",
        archiveprefix="arXiv",
    ),
    _entry(
        "hu2022lora",
        "inproceedings",
        "low-rank adapters",
        "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean "
        "and Wang, Lu and Chen, Weizhu",
        "{LoRA}: Low-Rank Adaptation of Large Language Models",
        2022,
        booktitle=_ICLR,
        eprint="2106.09685",
        archiveprefix="arXiv",
    ),
    _entry(
        "wolf2020transformers",
        "inproceedings",
        "models, tokenizers and trainer",
        "Wolf, Thomas and Debut, Lysandre and Sanh, Victor and Chaumond, Julien and Delangue, Clement and Moi, Anthony "
        "and Cistac, Pierric and Rault, Tim and Louf, R{\\'e}mi and Funtowicz, Morgan and others",
        "Transformers: State-of-the-Art Natural Language Processing",
        2020,
        booktitle="Conference on Empirical Methods in Natural Language Processing: System Demonstrations",
        pages="38--45",
    ),
    _entry(
        "lin2004rouge",
        "inproceedings",
        "ROUGE-L",
        "Lin, Chin-Yew",
        "{ROUGE}: A Package for Automatic Evaluation of Summaries",
        2004,
        booktitle="Text Summarization Branches Out",
        pages="74--81",
    ),
    _entry(
        "sun2025warmup",
        "article",
        "warm-up on text that the teacher corrected",
        "Sun, Zengkui and Liu, Yijin and Meng, Fandong and Chen, Yufeng and Xu, Jinan and Zhou, Jie",
        "{Warmup-Distill}: Bridge the Distribution Mismatch between Teacher and Student before Knowledge Distillation",
        2025,
        eprint="2502.11766",
        archiveprefix="arXiv",
    ),
    _entry(
        "ko2025distillm2",
        "inproceedings",
        "contrastive pairs of the teacher's and the student's text",
        "Ko, Jongwoo and Chen, Tianyi and Kim, Sungnyun and Ding, Tianyu and Liang, Luming and Zharkov, Ilya and "
        "Yun, Se-Young",
        "{DistiLLM-2}: A Contrastive Approach Boosts the Distillation of {LLMs}",
        2025,
        booktitle=_ICML,
        eprint="2503.07067",
        archiveprefix="arXiv",
    ),
    _entry(
        "lin2020imitkd",
        "inproceedings",
        "text that the student wrote beforehand",
        "Lin, Alexander and Wohlwend, Jeremy and Chen, Howard and Lei, Tao",
        "Autoregressive Knowledge Distillation through Imitation Learning",
        2020,
        booktitle="Conference on Empirical Methods in Natural Language Processing",
        eprint="2009.07253",
        archiveprefix="arXiv",
    ),
    _entry(
        "rafailov2023direct",
        "inproceedings",
        "preference for the corrected text (DPO)",
        "Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Ermon, Stefano and Manning, Christopher D. and "
        "Finn, Chelsea",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        2023,
        booktitle="Advances in Neural Information Processing Systems",
        eprint="2305.18290",
        archiveprefix="arXiv",
    ),
    _entry(
        "mirzadeh2020improved",
        "inproceedings",
        "teacher assistants",
        "Mirzadeh, Seyed Iman and Farajtabar, Mehrdad and Li, Ang and Levine, Nir and Matsukawa, Akihiro and "
        "Ghasemzadeh, Hassan",
        "Improved Knowledge Distillation via Teacher Assistant",
        2020,
        booktitle="AAAI Conference on Artificial Intelligence",
        eprint="1902.03393",
        archiveprefix="arXiv",
    ),
    _entry(
        "son2021densely",
        "inproceedings",
        "teachers left out at random",
        "Son, Wonchul and Na, Jaemin and Choi, Junyong and Hwang, Wonjun",
        "Densely Guided Knowledge Distillation using Multiple Teacher Assistants",
        2021,
        booktitle="IEEE/CVF International Conference on Computer Vision",
        eprint="2009.08825",
        archiveprefix="arXiv",
    ),
    _entry(
        "ganta2022weighted",
        "misc",
        "weights of teachers by differential evolution",
        "Ganta, Durga Prasad and Das Gupta, Himel and Sheng, Victor S.",
        "Knowledge Distillation via Weighted Ensemble of Teaching Assistants",
        2022,
        eprint="2206.12005",
        archiveprefix="arXiv",
    ),
    _entry(
        "boizard2025towards",
        "article",
        "rank-ordered probabilities across tokenizers",
        "Boizard, Nicolas and El Haddad, Kevin and Hudelot, C{\\'e}line and Colombo, Pierre",
        "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for {LLM}s",
        2025,
        journal="Transactions on Machine Learning Research",
        eprint="2402.12030",
        archiveprefix="arXiv",
    ),
    _entry(
        "leviathan2023speculative",
        "inproceedings",
        "acceptance rate as a draft",
        "Leviathan, Yaniv and Kalman, Matan and Matias, Yossi",
        "Fast Inference from Transformers via Speculative Decoding",
        2023,
        booktitle=_ICML,
        eprint="2211.17192",
        archiveprefix="arXiv",
    ),
)

CITATIONS: dict[str, Citation] = {citation.key: citation for citation in _ALL}
