from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from tests.data.layouts import draw

from resnetlab.core.errors import UserError
from resnetlab.data.sources.findings import Findings
from resnetlab.data.sources.folders import list_table
from resnetlab.data.sources.tables import check_class_names, read_table


def write(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def listed(path: Path, **options) -> dict[str, list[tuple[str, int]]]:
    """The table's files relative to its folder, with their labels."""
    files = read_table(path, **options).files
    return {split: [(str(file.relative_to(path.parent)), at) for file, at in found] for split, found in files.items()}


def test_a_table_gives_files_and_labels_by_split(tmp_path: Path):
    path = write(tmp_path, "Path,Label,Split\nb.png,dog,Training\na/1.png,cat,train\nc.png,cat,VALID\nd.png,dog,test\n")
    assert read_table(path).class_names == ("cat", "dog")
    assert listed(path) == {
        "train": [("b.png", 1), ("a/1.png", 0)], "validation": [("c.png", 0)], "test": [("d.png", 1)],
    }  # fmt: skip
    assert listed(write(tmp_path, "target,image\nx,1.png\n")) == {"train": [("1.png", 0)]}
    assert read_table(write(tmp_path, "file,class\n/abroad/1.png,x\n")).files == {"train": [(Path("/abroad/1.png"), 0)]}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.CSV"])
def test_delimiters_line_ends_and_a_byte_order_mark_are_taken_as_they_come(
    tmp_path: Path, delimiter: str, end: str, name: str
):
    rows = [("notes", "filename", "class_name"), ('"a,b;c\td"', "1.png", " cat "), ("", '"2;,\t.png"', "dog")]
    text = "\ufeff" + end.join(delimiter.join(row) for row in rows)
    assert listed(write(tmp_path, text, name)) == {"train": [("1.png", 0), ("2;,\t.png", 1)]}


def test_text_stays_as_it_is(tmp_path: Path):
    path = write(tmp_path, "path,label\nNA,NA\nnull,None\n01,01\n1,1\n1.0,1.0\n")
    assert read_table(path).class_names == ("01", "1", "1.0", "NA", "None")
    assert listed(path)["train"] == [("NA", 3), ("null", 4), ("01", 0), ("1", 1), ("1.0", 2)]


def test_integers_are_sorted_by_value_and_are_positions_where_classes_are_named(tmp_path: Path):
    path = write(tmp_path, "path,label\na,10\nb,2\nc,0\n")
    assert read_table(path).class_names == ("0", "2", "10")
    assert listed(path)["train"] == [("a", 2), ("b", 1), ("c", 0)]
    names = [f"class {number}" for number in range(11)]
    assert listed(path, class_names=names)["train"] == [("a", 10), ("b", 2), ("c", 0)]
    assert listed(path, class_names=["10", "2", "0"])["train"] == [("a", 0), ("b", 1), ("c", 2)]
    with pytest.raises(UserError, match=r"labels\.csv, line 2: label 10 is not one of 0 to 2, the classes' positions"):
        read_table(path, ["x", "y", "z"])
    with pytest.raises(UserError, match="line 2: label -1 is not one of 0 to 1"):
        read_table(write(tmp_path, "path,label\na,-1\nb,0\n"), ["x", "y"])


def test_names_are_numbered_by_the_classes_that_were_given(tmp_path: Path):
    path = write(tmp_path, "path,label\na,dog\nb,cat\n")
    assert listed(path, class_names=["dog", "owl", "cat"])["train"] == [("a", 0), ("b", 2)]
    with pytest.raises(UserError, match=r"line 2: unknown class 'dog'\. Did you mean 'dogs'\? Classes: cat, dogs\."):
        read_table(path, ["cat", "dogs"])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("cat", r"must be a sequence of names, such as \['cat', 'dog'\], got 'cat'"),
        (["cat", 1], "must be a sequence of names"),
        ([" "], "must be a sequence of names"),
        ([], r"class_names is empty\. Name every class"),
        (["a", "b", "a"], "contains 'a' twice"),
    ],
)
def test_class_names_must_be_distinct_texts(names, words: str):
    with pytest.raises(UserError, match=words):
        check_class_names(names)


def test_the_line_is_the_files_own(tmp_path: Path):
    text = 'path,label,note\na,x,"two\nlines"\n\nb,x,"three\r\nlines\n"\nc,,\n'
    with pytest.raises(UserError, match=r"labels\.csv, line 8: the label is missing\.\nCorrect these rows\.$"):
        read_table(write(tmp_path, text))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,x,train\n,x,train", "line 3: the path is missing"),
        ("a,x,train\nb, ,train", "line 3: the label is missing"),
        ("a,x,train\nb,x,", "line 3: the split is missing"),
        ("a,x,train\nb,x,tset", r"line 3: unknown split 'tset'\. Did you mean 'test'\? Expected train, validation or"),
        ("a\0,x,train", r"line 2: 'a\\x00' is not a path"),
        ("a,x,train\nb,x", "line 3: 2 fields where the header has 3"),
        ("a,x,train\nb,x,train,", "line 3: 4 fields where the header has 3"),
        ('a,x,train\n"b,x,train\n', "line 3: .*quotes"),
        (
            "a,x,train\n./a,y,train",
            r"line 3: '\./a' is labeled 'y' here and 'x' in line 2\.\nGive every image one row",
        ),
        ("a,x,train\nb/../a,x,test", r"line 3: 'b/\.\./a' is in the test split here and in train in line 2"),
        ("a,x,train\nb,y,test", "line 3: class 'y' is in the test split and never in the train split"),
        ("a,x,train\nb,y,val", "class 'y' is in the validation split and never in the train split"),
        ("a,x,test", "has no row of the train split"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, rows: str, words: str):
    with pytest.raises(UserError, match=words) as error:
        read_table(write(tmp_path, f"path,label,split\n{rows}\n"))
    assert "labels.csv" in str(error.value)


def test_the_first_problems_are_named_and_the_others_counted(tmp_path: Path):
    path = write(tmp_path, "path,label\n" + "".join(f"{number},\n" for number in range(1234)))
    with pytest.raises(UserError) as error:
        read_table(path)
    assert len(re.findall("the label is missing", str(error.value))) == 10
    assert "line 11: the label is missing.\nAnd 1,224 more.\n" in str(error.value)


def test_an_image_that_is_named_again_is_taken_once_with_a_warning(tmp_path: Path):
    path = write(tmp_path, "path,label\na,x\nb,x\n./a,x\n")
    with pytest.warns(UserWarning, match=r"labels\.csv .*\b1 image"):
        assert listed(path) == {"train": [("a", 0), ("b", 0)]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"labels\.csv is empty\. Expected a header with the columns path and label"),
        ("path,label\n", "has no rows"),
        ("\n\n", "is empty"),
        ("name,label\na,x\n", "no column for the path. Expected one of path, file, filename,.* it has name, label"),
        ("a/1.png,cat\na/2.png,dog\n", "The first line seems to be an image: add a line such as path,label"),
        ("path,lable\na,x\n", r"no column for the label\. .*it has path, lable\. Did you mean 'lable'\?"),
        ("path,label,Path\na,x,b\n", "has two columns path. Keep one"),
        ('"path,label\na,x\n', r"labels\.csv, line 1: "),
    ],
)
def test_a_table_without_rows_or_columns_is_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(
        UserError, match=words.replace(". Expected one", r"\. Expected one").replace(". Keep", r"\. Keep")
    ):
        read_table(write(tmp_path, text))


def test_what_is_no_table_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no table .*x\.csv'\. Give the path of"):
        read_table(tmp_path / "x.csv")
    with pytest.raises(UserError, match=r"is not a table: expected a \.csv, \.tsv or \.parquet file"):
        read_table(write(tmp_path, "path,label\na,x\n", "labels.xlsx"))
    with pytest.raises(UserError, match=r"/x\.parquet .*Expected .*Parquet"):
        read_table(write(tmp_path, "path,label\na,x\n", "x.parquet"))
    (tmp_path / "labels.csv").write_bytes("path,label\na,x\nb,é\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"labels\.csv, line 3: not UTF-8 text .*Save the table as UTF-8"):
        read_table(tmp_path / "labels.csv")
    with pytest.raises(UserError, match="class_names contains 'a' twice"):
        read_table(tmp_path / "labels.csv", ["a", "a"])


def test_parquet_is_read_the_same_way(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "image": ["1.png", "NA", "3.png"],
            "Class": pd.Categorical(["None", "01", "None"]),
            "subset": ["train", "train", "test"],
            "more": [1.0, 2.0, None],
        }
    )
    path = tmp_path / "labels.parquet"
    frame.to_parquet(path)
    assert read_table(path).class_names == ("01", "None")
    assert listed(path) == {"train": [("1.png", 1), ("NA", 0)], "test": [("3.png", 1)]}
    pd.DataFrame({"path": ["a", "b", "c"], "label": [10, 9, 10]}).to_parquet(path)
    assert read_table(path).class_names == ("9", "10")
    assert listed(path, class_names=list("abcdefghijk"))["train"] == [("a", 10), ("b", 9), ("c", 10)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["x", None, "x"], r"labels\.parquet, row 2: the label is missing"),
        (pd.array([1, None, 1], dtype="Int64"), "row 2: the label is missing"),
        ([1.0, 2.5, 1.0], r"row 2: the label must be a name or an integer, got 2\.5"),
        ([b"x", b"x", b"y"], "row 1: the label must be a name or an integer, got b'x'"),
    ],
)
def test_a_wrong_row_of_parquet_is_named(tmp_path: Path, labels, words: str):
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"path": ["a", "b", "c"], "label": labels}).to_parquet(path)
    with pytest.raises(UserError, match=words):
        read_table(path)


WRITTEN = {
    "filename, class": ("filename,class\n1.png,cat\n2.png,dog\n", ("cat", "dog"), {"train": 2}),
    "image, target": ("image,target\n1.png,3\n2.png,11\n", ("3", "11"), {"train": 2}),
    "file_name, label": ("file_name,label\n1.png,cat\n2.png,dog\n", ("cat", "dog"), {"train": 2}),
    "File Name; Labels": ("\ufeffFile Name;Labels\n1.png;0\n2.png;1\n", ("0", "1"), {"train": 2}),
    "is_valid": (
        "path,label,is_valid\n1,a,False\n2,b,False\n3,a,True\n4,b,TRUE\n",
        ("a", "b"),
        {"train": 2, "validation": 2},
    ),
    "is_test": (
        "path,label,is_valid,is_test\n1,a,0,0\n2,a,1,0\n3,a,0,1\n",
        ("a",),
        {"train": 1, "validation": 1, "test": 1},
    ),
    "set": ("path,label,set\n1,a,train\n2,a,holdout\n3,a,dev\n", ("a",), {"train": 1, "validation": 1, "test": 1}),
    "true, false": ("path,label\n1,true\n2,false\n", ("False", "True"), {"train": 2}),
    "whole numbers": ("path,label\n1,1.0\n2,10.0\n3,2\n", ("1", "2", "10"), {"train": 3}),
    "backslashes": ("path,label\nimages\\a\\1.png,a\nimages\\b\\2.png,b\n", ("a", "b"), {"train": 2}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_tables_as_people_have_them(tmp_path: Path, name: str):
    text, class_names, counts = WRITTEN[name]
    table = read_table(write(tmp_path, text))
    assert table.class_names == class_names
    assert {split: len(rows) for split, rows in table.files.items()} == counts
    assert not any("\\" in str(path) for rows in table.files.values() for path, _ in rows)


def test_a_file_whose_name_contains_a_backslash_is_found(tmp_path: Path):
    (tmp_path / "a\\1.png").write_bytes(b"x")
    assert listed(write(tmp_path, "path,label\na\\1.png,a\n")) == {"train": [("a\\1.png", 0)]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label,fold\n1,a,0\n2,b,1\n", r"column fold \(0, 1\) is not used.*column split.*validation"),
        ("path,label,phase\n1,a,train\n2,b,val\n", r"column phase \(train, val\) is not used"),
        ("path,label,filename\n1,a,x\n", "the column path is the path; filename is not used"),
        ("path,label,split\n1,a,train\n2,,test\n3,,test\n", "2 rows of the test split"),
    ],
)
def test_what_is_not_used_is_said(tmp_path: Path, text: str, words: str):
    with pytest.warns(UserWarning, match=words):
        read_table(write(tmp_path, text))


def test_a_missing_number_is_not_a_class(tmp_path: Path):
    with pytest.raises(UserError, match="line 3: the label is missing: nan"):
        read_table(write(tmp_path, "path,label\n1,0\n2,nan\n3,1\n"))


def test_truth_values_and_whole_numbers_are_the_same_classes_in_csv_and_parquet(tmp_path: Path):
    for labels, class_names in (([True, False, True], ("False", "True")), ([1.0, 0.0, 1.0], ("0", "1"))):
        frame = pd.DataFrame({"path": ["a", "b", "c"], "label": labels})
        frame.to_csv(tmp_path / "t.csv", index=False)
        frame.to_parquet(tmp_path / "t.parquet")
        assert [read_table(tmp_path / f"t.{end}").class_names for end in ("csv", "parquet")] == [class_names] * 2


def test_a_class_of_the_test_split_alone_is_named_once(tmp_path: Path):
    rows = "".join(f"{number},new,test\n" for number in range(20))
    with pytest.raises(UserError) as error:
        read_table(write(tmp_path, f"path,label,split\na,x,train\n{rows}"))
    assert str(error.value).count("'new'") == 1


def test_utf_16_is_read(tmp_path: Path):
    (tmp_path / "t.csv").write_bytes("path\tlabel\n1.png\té\n".encode("utf-16"))
    assert read_table(tmp_path / "t.csv").class_names == ("é",)


def test_a_table_of_no_files_says_where_its_paths_start(tmp_path: Path):
    draw(tmp_path, "images/a*2 images/b*2")
    (tmp_path / "meta").mkdir()
    text = "path,label\nimages/a/000.png,a\nimages/b/000.png,b\n"
    with pytest.raises(UserError, match=f"none of the 2 images .*They exist relative to {tmp_path}: move the table"):
        list_table(write(tmp_path / "meta", text))
    with pytest.raises(UserError, match="start with a drive of Windows"):
        list_table(write(tmp_path, text.replace("images/", "C:\\pictures\\")))
    assert len(list_table(write(tmp_path, text)).files["train"]) == 2
    absolute = text.replace("images", f"{tmp_path}/images")
    assert len(list_table(write(tmp_path / "meta", absolute)).files["train"]) == 2


def test_wrong_rows_are_left_out_for_inspection(tmp_path: Path):
    draw(tmp_path, "a*3 b*3")
    findings = Findings(lenient=True)
    table = write(
        tmp_path, "path,label,split\na/000.png,a,train\na/001.png,,train\na/002.png,a,test\nb/000.png,b,test\n"
    )
    source = list_table(table, findings=findings)
    assert {split: len(files) for split, files in source.files.items()} == {"train": 1, "test": 2}
    assert ["line 3: the label" in findings.refusals[0], "class 'b'" in findings.refusals[1]] == [True, True]
