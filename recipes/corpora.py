"""What the recipes share that make a corpus: its sentences, and the error that ends them."""

from pathlib import Path


class CorpusError(Exception):
    """A problem that the user can solve, in one line; `code` is the exit status it asks for."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


def read_sentences(path: Path) -> dict[int, str]:
    """Read one sentence per line and return them by line number, leaving out blank lines.

    Raises:
        CorpusError: if there are none, or one cannot be in a line of metadata.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"cannot read the sentences: {error}") from None
    sentences = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not sentences:
        raise CorpusError(f"no sentences in {path}")
    for number, text in sentences.items():
        if "|" in text:
            raise CorpusError(f"{path}, line {number}: a sentence may not contain '|', which separates the metadata")
    return sentences
