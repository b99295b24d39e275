from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.export.obtain import naming
from edgellm.export.obtain.naming import BadReference


@pytest.mark.parametrize(
    ("text", "repo", "quant"),
    [
        ("user/repo", "user/repo", None),
        ("user/repo:Q8_0", "user/repo", "Q8_0"),
        ("hf.co/user/repo:q4_k_m", "user/repo", "q4_k_m"),
        ("huggingface.co/user/repo", "user/repo", None),
        ("https://huggingface.co/user/repo/", "user/repo", None),
        ("https://huggingface.co/user/repo/resolve/main/a-Q4_0.gguf?download=true", "user/repo", "a-Q4_0.gguf"),
        ("https://hf.co/user/repo/blob/main/a-Q4_0.gguf", "user/repo", "a-Q4_0.gguf"),
        ("hf://user/repo", "user/repo", None),
        ("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", None),
        ("user/repo:some-file.gguf", "user/repo", "some-file.gguf"),
    ],
)
def test_repositories_are_recognised_however_they_are_written(text: str, repo: str, quant: str | None) -> None:
    parsed = naming.parse(text)
    assert (parsed.repo, parsed.quant, parsed.name, parsed.path) == (repo, quant, None, None)


@pytest.mark.parametrize(
    ("text", "name", "quant"), [("smollm2", "smollm2", None), ("qwen3-4b:Q4_K_M", "qwen3-4b", "Q4_K_M")]
)
def test_a_bare_word_is_a_name(text: str, name: str, quant: str | None) -> None:
    parsed = naming.parse(text)
    assert (parsed.name, parsed.quant, parsed.repo, parsed.path) == (name, quant, None, None)


def test_a_file_is_a_path_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "user"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for text in (str(folder / "model.gguf"), "user/model.gguf", "./user/model.gguf"):
        path = naming.parse(text).path
        assert path is not None
        assert path.samefile(folder / "model.gguf")
    monkeypatch.chdir(folder)
    assert naming.parse("model.gguf").path == Path("model.gguf")


def test_a_file_named_like_a_model_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "smollm2").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert naming.parse("smollm2").name == "smollm2"


@pytest.mark.parametrize(
    "text",
    ["", "/nowhere/model.gguf", "./nowhere", "model.gguf", "a/b/c", "../x/y", "hf.co/user", "user/", "/", "user/..",
     "us--er/repo", "user/re..po", "user/repo.git", "user/" + "x" * 97, "hf.co/../../etc/passwd", "https://hf.co/"],
)  # fmt: skip
def test_what_names_nothing_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadReference):
        naming.parse(text)


def test_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadReference, match="is a folder"):
        naming.parse(str(tmp_path))


@pytest.mark.parametrize(
    ("filename", "quant"),
    [
        ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("Llama-3.2-1B-Instruct-IQ3_XXS.gguf", "IQ3_XXS"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-fp16.gguf", "F16"),
        ("model-BF16.gguf", "BF16"),
        ("model.gguf", None),
        ("q4_k_m-of-what", "Q4_K_M"),
        ("big-Q5_K_M-00001-of-00002.gguf", "Q5_K_M"),
    ],
)
def test_the_quantisation_is_read_from_the_name(filename: str, quant: str | None) -> None:
    assert naming.quant_of(filename) == quant


def test_companions_and_files_in_folders_are_no_models() -> None:
    names = ["a-Q4_0.gguf", "mmproj-a-f16.gguf", "a.imatrix.gguf", "sub/a-Q8_0.gguf", "README.md", "../a.gguf"]
    assert [name for name in names if naming.is_model_file(name)] == ["a-Q4_0.gguf"]


def test_parts_may_lie_in_a_folder_of_the_repository() -> None:
    part = "m-00001-of-00002.gguf"
    names = [part, f"Q8_0/{part}", f"a/b/{part}", f"../{part}", f"/{part}", f".git/{part}", "Q8_0/m.gguf"]
    assert [name for name in names if naming.is_model_file(name)] == [part, f"Q8_0/{part}"]


IN_PARTS = ["Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf"]
SEVERAL = ["m-Q2_K.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-f16.gguf"]


@pytest.mark.parametrize(
    ("filenames", "quant", "chosen"),
    [
        (SEVERAL, None, "m-Q4_K_M.gguf"),
        (SEVERAL, "q8_0", "m-Q8_0.gguf"),
        (SEVERAL, "F16", "m-f16.gguf"),
        (SEVERAL, "M-q2_k.GGUF", "m-Q2_K.gguf"),
        (["m-Q8_0.gguf", "m-f16.gguf"], None, "m-Q8_0.gguf"),
        (["only-f16.gguf"], None, "only-f16.gguf"),
        (["unnamed.gguf"], None, "unnamed.gguf"),
        (["m-Q4_K_M-00001-of-00001.gguf"], None, "m-Q4_K_M-00001-of-00001.gguf"),
        (["m-Q4_K_M-00001-of-00001.gguf", "m-Q2_K.gguf"], "q4_k_m", "m-Q4_K_M-00001-of-00001.gguf"),
        (["m-Q2_K.gguf", *IN_PARTS], None, IN_PARTS[0]),
        (["m-Q2_K.gguf", *IN_PARTS], "q4_k_m", IN_PARTS[0]),
        (IN_PARTS, "m-q4_k_m-00002-of-00002.gguf", IN_PARTS[0]),
        (IN_PARTS, IN_PARTS[1], IN_PARTS[0]),
        (["m-Q4_K_M.gguf", *IN_PARTS], "q4_k_m", "m-Q4_K_M.gguf"),
    ],
)
def test_the_meant_file_is_chosen(filenames: list[str], quant: str | None, chosen: str) -> None:
    assert naming.choose(filenames, quant, where="me/m") == chosen


@pytest.mark.parametrize(
    ("filenames", "quant", "says"),
    [
        ([], None, "no GGUF file"),
        (SEVERAL, "Q3_K_S", "has no Q3_K_S; it has Q2_K, Q4_K_M, Q8_0, F16"),
        (["a.gguf", "b.gguf"], None, r"several files that fit: a\.gguf, b\.gguf; name one, as in me/m:a\.gguf"),
        (["a-Q4_0.gguf", "b-Q4_0.gguf"], "q4_0", r"a-Q4_0\.gguf, b-Q4_0\.gguf"),
        (["m-IQ2_S.gguf", "m-IQ1_S.gguf"], None, "IQ2_S, IQ1_S; name one, as in me/m:IQ2_S"),
        (["m-Q4_K_M-00001-of-00003.gguf", "m-Q4_K_M-00003-of-00003.gguf", "m-Q2_K.gguf"], None,
         r"lacks m-Q4_K_M-00002-of-00003\.gguf, without which m-Q4_K_M-00001-of-00003\.gguf is no whole model"),
    ],
)  # fmt: skip
def test_a_choice_that_cannot_be_made_lists_what_there_is(filenames: list[str], quant: str | None, says: str) -> None:
    with pytest.raises(BadReference, match=says):
        naming.choose(filenames, quant, where="me/m")
