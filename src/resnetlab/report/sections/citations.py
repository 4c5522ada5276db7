"""The publications whose methods the report uses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from markupsafe import Markup, escape

from resnetlab.report.section import Report, Section


@dataclass(frozen=True, kw_only=True)
class Work:
    """A publication, with BibTeX's fields; `use` names what the report uses it for."""

    key: str
    kind: str
    author: str
    title: str
    venue: str
    year: int
    fields: str
    use: str
    link: str


WORKS = (
    Work(
        key="he2016deep", kind="inproceedings", use="Residual networks and layer responses",
        author="He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian",
        title="Deep Residual Learning for Image Recognition", year=2016,
        venue="IEEE Conference on Computer Vision and Pattern Recognition (CVPR)", fields="pages = {770--778}",
        link="https://arxiv.org/abs/1512.03385",
    ),
    Work(
        key="veit2016residual", kind="inproceedings", use="Removing a block",
        author="Veit, Andreas and Wilber, Michael J. and Belongie, Serge",
        title="Residual Networks Behave Like Ensembles of Relatively Shallow Networks", year=2016,
        venue="Advances in Neural Information Processing Systems", fields="volume = {29}",
        link="https://arxiv.org/abs/1605.06431",
    ),
    Work(
        key="zhou2016learning", kind="inproceedings", use="Class activation",
        author="Zhou, Bolei and Khosla, Aditya and Lapedriza, Agata and Oliva, Aude and Torralba, Antonio",
        title="Learning Deep Features for Discriminative Localization", year=2016,
        venue="IEEE Conference on Computer Vision and Pattern Recognition (CVPR)", fields="pages = {2921--2929}",
        link="https://arxiv.org/abs/1512.04150",
    ),
    Work(
        key="maaten2008visualizing", kind="article", use="Map of the images (t-SNE)",
        author="van der Maaten, Laurens and Hinton, Geoffrey",
        title="Visualizing Data using t-SNE", year=2008, venue="Journal of Machine Learning Research",
        fields="volume = {9}, pages = {2579--2605}", link="https://jmlr.org/papers/v9/vandermaaten08a.html",
    ),
    Work(
        key="guo2017calibration", kind="inproceedings", use="Reliability diagram and calibration error",
        author="Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.",
        title="On Calibration of Modern Neural Networks", year=2017,
        venue="International Conference on Machine Learning (ICML)", fields="pages = {1321--1330}",
        link="https://arxiv.org/abs/1706.04599",
    ),
    Work(
        key="wilson1927probable", kind="article", use="Confidence interval of an accuracy", author="Wilson, Edwin B.",
        title="Probable Inference, the Law of Succession, and Statistical Inference", year=1927,
        venue="Journal of the American Statistical Association",
        fields="volume = {22}, number = {158}, pages = {209--212}",
        link="https://doi.org/10.1080/01621459.1927.10502953",
    ),
)  # fmt: skip


def view(report: Report) -> dict[str, Any]:
    """Returns the publications, and all of them as BibTeX."""
    works = [{**asdict(work), "people": _people(work.author)} for work in WORKS]
    # Each entry is escaped by hand, so that its line breaks stay.
    return {"works": works, "bibtex": Markup("\n\n").join(map(_bibtex, WORKS))}


def _people(author: str) -> str:
    names = [" ".join(reversed(name.split(", "))) for name in author.split(" and ")]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _bibtex(work: Work) -> Markup:
    place = "journal" if work.kind == "article" else "booktitle"
    fields = "".join(f"  {field},\n" for field in work.fields.split(", "))
    return escape(
        f"@{work.kind}{{{work.key},\n  author = {{{work.author}}},\n  title = {{{work.title}}},\n"
        f"  {place} = {{{work.venue}}},\n{fields}  year = {{{work.year}}}\n}}"
    )


SECTION = Section(order=110, name="citations", title="Citations", link="Citations", view=view)
