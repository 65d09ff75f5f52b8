"""Caption metrics against the package they are rewritten from, and words against its Java tokeniser."""

from __future__ import annotations

import random
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_v2pe.evaluate.families.long_vqa.captions import bleu, cider, rouge
from megatron_v2pe.evaluate.families.long_vqa.ptb_words import ptb_words

DROPPED = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
VOCABULARY = (
    "a the is are on in of cat dogs Dog woman's people's it's isn't don't they're I'm 3 3.5 1,000 50% $5 10:30 1/2 "
    "Mr. U.S. e.g. St. yes no North-West twenty-one well-known km/h (old) [1] \"quote\" 'single' café 中文 x, y; z: "
    "ok! what? 5th 5pm cannot gonna £3 a.m. -5 R&D #tag wow..."
).split()


@pytest.fixture
def package():
    if find_spec("pycocoevalcap") is None:
        pytest.skip("the package pycocoevalcap is not installed (extra meteor)")


def sentences(seed: int, count: int, shortest: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    words = "a the cat dog sat on mat red is here there".split()
    return [[draw.choice(words) for _ in range(draw.randint(shortest, 9))] for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_bleu_cider_and_rouge_against_the_package(package, seed):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    captions = sentences(seed, 4)
    truths = [sentences(100 * seed + number, 1 + number, 1) for number in range(4)]
    said = {number: [" ".join(words)] for number, words in enumerate(captions)}
    true = {number: [" ".join(words) for words in references] for number, references in enumerate(truths)}
    expected, _ = Bleu(4).compute_score(true, said, verbose=0)
    assert bleu(captions, truths) == pytest.approx(expected, abs=1e-12)
    assert cider(captions, truths) == pytest.approx(Cider().compute_score(true, said)[0], abs=1e-12)
    assert rouge(captions, truths) == pytest.approx(Rouge().compute_score(true, said)[0], abs=1e-12)


def test_bleu_of_equal_captions_and_of_none():
    words = "the cat is here now".split()
    assert bleu([words], [[words]])[3] == pytest.approx(1, abs=1e-8)
    assert bleu([[]], [[words]])[3] == 0
    assert cider([words], [[words]]) == 0
    assert rouge([[]], [[words]]) == 0


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("The cat's here.", "the cat 's here"),
        ("Don't, can't, isn’t", "do n't ca n't is n't"),
        ("Mr. Smith (old) of the U.S.", "mr. smith -lrb- old -rrb- of the u.s."),
        ("50% of $5.00", "50 % of $ 5.00"),
        ("well-known and/or 1/2", "well-known and/or 1/2"),
        ("wow!! what?", "wow !! what"),
        ('"quoted" `x`', "quoted x"),
        ("cannot gonna", "can not gon na"),
        ("½ cup — £3", "1/2 cup # 3"),
        ("plan b. next", "plan b. next"),
        ("", ""),
    ],
)
def test_words(caption, words):
    assert ptb_words(caption) == words.split()


@pytest.mark.slow
def test_words_against_the_java_tokeniser(package, tmp_path):
    """All of 2,000 random lines full of signs have the same words when this was written, and all plain ones."""
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    import pycocoevalcap

    draw = random.Random(3)
    hard = [" ".join(draw.choice(VOCABULARY) for _ in range(draw.randint(1, 9))) for _ in range(2000)]
    plain = [" ".join(words) + "." for words in sentences(7, 500, 1)]
    text = tmp_path / "captions.txt"
    text.write_text("\n".join([*hard, *plain]) + "\n")
    jar = Path(pycocoevalcap.__path__[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    run = subprocess.run([*command, "-preserveLines", "-lowerCase", str(text)], capture_output=True, check=True)
    expected = [[word for word in line.split() if word not in DROPPED] for line in run.stdout.decode().splitlines()]
    agree = [ptb_words(line) == words for line, words in zip([*hard, *plain], expected, strict=True)]
    assert sum(agree[:2000]) >= 1990
    assert all(agree[2000:])
