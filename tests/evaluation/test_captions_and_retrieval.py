"""BLEU and CIDEr-D against the kept libraries where they are installed, facts, and recall."""

from __future__ import annotations

import pytest
import torch

from nanovlm.evaluation.captions import bleu, caption_facts, cider, fact_f1
from nanovlm.evaluation.contamination import near_copies, shared_ngrams
from nanovlm.evaluation.retrieval import ranks, recall_at_k

CANDIDATES = [
    "top left red circle top right blue square bottom left nothing",
    "a red sign with three characters is at the top of it",
    "two bars red five and blue three of them",
]
REFERENCES = [
    ["top left red circle top right nothing bottom left blue square", "a red circle and top right a blue square"],
    ["a blue sign with three characters is here", "it has a red sign with three characters at the top"],
    ["three bars red five and blue three", "two bars red five and blue three"],
]


def test_bleu_agrees_with_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install sacrebleu")
    columns = [list(column) for column in zip(*REFERENCES, strict=True)]
    for max_n in (1, 2, 4):
        metric = sacrebleu.BLEU(tokenize="none", smooth_method="none", max_ngram_order=max_n)
        assert bleu(CANDIDATES, REFERENCES, max_n) == pytest.approx(
            metric.corpus_score(CANDIDATES, columns).score / 100
        )


def test_cider_agrees_with_pycocoevalcap() -> None:
    module = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="pycocoevalcap is not installed")
    scorer = module.CiderScorer(n=4, sigma=6.0)
    for candidate, texts in zip(CANDIDATES, REFERENCES, strict=True):
        scorer += (candidate, texts)
    expected = torch.tensor(scorer.compute_score()[1], dtype=torch.float64)
    torch.testing.assert_close(cider(CANDIDATES, REFERENCES), expected)


def test_a_copy_is_perfect_and_nothing_in_common_is_zero() -> None:
    copies = [texts[0] for texts in REFERENCES]
    assert bleu(copies, [[copy] for copy in copies]) == pytest.approx(1)
    torch.testing.assert_close(cider(copies, [[copy] for copy in copies]), torch.full((3,), 10.0, dtype=torch.float64))
    assert bleu(["x y z w"], [["a b c d"]]) == 0 and cider(["x y"], [["a b"]]).tolist() == [0]
    with pytest.raises(ValueError, match="no reference"):
        bleu(["a"], [[]])


def test_facts_see_a_swap_that_overlap_does_not() -> None:
    true = "top left: red circle. top right: blue square. bottom left: nothing. bottom right: green star."
    swapped = "top left: red square. top right: blue circle. bottom left: nothing. bottom right: green star."
    assert len(caption_facts(true)) == 7
    assert fact_f1([true], [true]) == 1 and fact_f1([swapped], [true]) == pytest.approx(5 / 7)
    assert fact_f1(["?"], ["?"]) == 0


def test_ties_count_against_the_model() -> None:
    assert ranks(torch.zeros(3, 3)).tolist() == [3, 3, 3]
    assert tuple(recall_at_k(torch.zeros(3, 3), 1)) == (0, 0)
    assert tuple(recall_at_k(torch.eye(3), 1)) == (1, 1)
    hub = torch.tensor([[2.0, 3.0], [0.0, 3.5]])  # the second text suits both pictures
    assert tuple(recall_at_k(hub, 1)) == (0.5, 1.0)
    for scores, k in ((torch.zeros(2, 3), 1), (torch.eye(2), 3)):
        with pytest.raises(ValueError):
            recall_at_k(scores, k)


def test_a_planted_leak_is_found(tmp_path) -> None:
    from nanovlm.data.thimble import Thimble

    test, train = Thimble("shapes", "test"), Thimble("shapes", "train")
    theirs = [train[i]["images"][0] for i in range(20)]
    leaked = test[3]["images"][0].resize((80, 80)).resize((64, 64))
    theirs[7] = leaked
    found = near_copies([test[i]["images"][0] for i in range(6)], theirs, most=2)
    assert found == {3: [7]}
    texts = ["a man walks his small dog along the beach at dawn", "nothing of the kind"]
    assert shared_ngrams(texts, ["x", "A man walks his small dog, along the beach!"], n=6) == {0: [1]}
    assert shared_ngrams(["", "short text"], ["short text."], n=8) == {1: [0]}
    assert near_copies([], theirs) == {}
