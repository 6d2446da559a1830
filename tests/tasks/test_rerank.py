"""Two-stage evaluation with a stand-in model whose scores are known, against the dense published
procedure."""

import numpy as np
import pytest
import torch

from aurora_ds.config import RetrievalConfig
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.candidates import best_of, contrastive_rank
from aurora_ds.tasks.rerank import Texts, evaluate_retrieval
from aurora_ds.tasks.retrieval_metrics import rank_of_targets, recall

DIM = 6


class StandIn:
    """Images and texts carry their number; features and matching scores are tables. Counts its calls."""

    def __init__(self, images, texts, seed):
        generator = torch.Generator().manual_seed(seed)
        self.image = torch.nn.functional.normalize(torch.randn(images, DIM, generator=generator), dim=1)
        self.text = torch.nn.functional.normalize(torch.randn(texts, DIM, generator=generator), dim=1)
        self.match_scores = torch.randn(images, texts, generator=generator)
        self.encoded, self.keyed, self.scored = [], [], []

    def __call__(self, batch, what):
        if what == "prepare_evaluation":
            return {}
        if what == "encode_images":
            numbers = batch["image"][:, 0, 0, 0].long()
            self.encoded += numbers.tolist()
            return {"feature": self.image[numbers], "tokens": batch["image"][:, :, :, 0]}
        if what == "encode_texts":
            return {"feature": self.text[batch["input_ids"][:, 1]]}
        if what == "image_keys":
            self.keyed += [int(batch["tokens"][0, 0, 0])]
            return {"image_kv": batch["tokens"]}
        image, texts = int(batch["image_kv"][0, 0, 0]), batch["input_ids"][:, 1]
        self.scored += [(image, int(t)) for t in texts]
        score = self.match_scores[image, texts]
        return {"logits": torch.stack([-score, score], dim=1)}


def evaluate(model, images, media, k, limit_mb=1, tail="similarity", beta=0.0, pairs_per_batch=3):
    def read(indices):
        for start in range(0, len(indices), 4):
            chosen = indices[start : start + 4]
            yield {"image": torch.tensor(chosen).float()[:, None, None, None].expand(-1, 3, 2, 2)}

    texts = Texts([[101, t] + [5] * (t % 3) for t in range(len(media))], torch.tensor(media), pad_id=0)
    options = RetrievalConfig(k_test=k, beta=beta, image_cache_mb=limit_mb, pairs_per_batch=pairs_per_batch)
    return evaluate_retrieval(
        model, read, images, texts, options, torch.device("cpu"), 4, 5, (3, 2, 2), tail=tail
    )


def published(model, media, k, beta):
    """The published matrices: -100 outside the top k, reversed argsort."""
    sims = model.image @ model.text.t()
    k_i, k_t = min(k, sims.shape[1]), min(k, sims.shape[0])
    score_i, score_t = torch.full_like(sims, -100.0), torch.full_like(sims.t(), -100.0)
    for i, row in enumerate(sims):
        top = row.topk(k_i).indices
        score_i[i, top] = model.match_scores[i, top] + beta * row[top]
    for t, row in enumerate(sims.t()):
        top = row.topk(k_t).indices
        score_t[t, top] = model.match_scores[top, t] + beta * row[top]
    image_ranks, text_ranks = [], []
    for i, row in enumerate(score_i.numpy()):
        order = np.argsort(row, kind="stable")[::-1]
        image_ranks.append(min(int(np.where(order == t)[0][0]) for t, m in enumerate(media) if m == i))
    for t, row in enumerate(score_t.numpy()):
        text_ranks.append(int(np.where(np.argsort(row, kind="stable")[::-1] == media[t])[0][0]))
    return image_ranks, text_ranks


@pytest.mark.parametrize(("images", "per_image", "k"), [(7, 2, 3), (5, 3, 100), (9, 1, 9), (11, 2, 1)])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_ranks_equal_the_dense_published_procedure(images, per_image, k, beta):
    media = [t // per_image for t in range(images * per_image)]
    model = StandIn(images, len(media), seed=images + k)
    result = evaluate(model, images, media, k, tail="released", beta=beta)
    expected_images, expected_texts = published(model, media, k, beta)
    assert result.image_ranks.tolist() == expected_images
    assert result.text_ranks.tolist() == expected_texts


def test_each_pair_is_scored_once_and_each_images_keys_are_made_once():
    media = [t // 2 for t in range(16)]
    model = StandIn(8, 16, seed=3)
    result = evaluate(model, 8, media, k=5)
    assert len(model.scored) == len(set(model.scored)) == result.pairs_scored < 8 * 5 + 16 * 5
    assert sorted(model.keyed) == list(range(8))


def test_without_room_for_tokens_images_are_encoded_again_with_equal_results():
    media = [t // 2 for t in range(16)]
    roomy, tight = StandIn(8, 16, seed=4), StandIn(8, 16, seed=4)
    first, second = evaluate(roomy, 8, media, k=4), evaluate(tight, 8, media, k=4, limit_mb=0)
    assert len(roomy.encoded) == 8 and len(tight.encoded) == 16
    assert torch.equal(first.image_ranks, second.image_ranks) and torch.equal(
        first.text_scores, second.text_scores
    )


def test_what_no_candidate_list_holds_keeps_its_contrastive_place():
    candidates, scores = torch.tensor([[2, 0]]), torch.tensor([[0.1, 0.9]])
    queries, targets = torch.tensor([0, 0, 0]), torch.tensor([0, 2, 4])
    places = torch.tensor([0, 0, 3])
    assert rank_of_targets(candidates, scores, queries, targets, places, 5).tolist() == [0, 1, 3]


def test_reading_fewer_images_than_planned_is_an_error():
    model = StandIn(8, 8, seed=0)
    texts = Texts([[101, t] for t in range(8)], torch.arange(8), 0)
    with pytest.raises(AuroraError, match="0 of 8 images"):
        evaluate_retrieval(
            model, lambda indices: [], 8, texts, RetrievalConfig(), torch.device("cpu"), 4, 5, (3, 2, 2)
        )


def test_of_equal_similarities_the_higher_index_goes_first():
    similarity = torch.tensor([[0.5, 0.9, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4], [0.7, 0.7, 0.7, 0.7]])
    indices, values = best_of(similarity, 2)
    assert [set(row) for row in indices.tolist()] == [{1, 3}, {3, 2}, {3, 2}]
    torch.testing.assert_close(values, similarity.gather(1, indices))
    places = [contrastive_rank(similarity[:1], torch.tensor([column])).item() for column in range(4)]
    assert places == [3, 0, 2, 1]


def test_a_model_that_sees_no_difference_finds_what_chance_finds():
    media = list(range(20))
    model = StandIn(20, 20, seed=1)
    model.image, model.text = torch.ones(20, DIM) / DIM**0.5, torch.ones(20, DIM) / DIM**0.5
    model.match_scores = torch.zeros(20, 20)
    result = evaluate(model, 20, media, k=4)
    assert sorted(result.text_ranks.tolist()) == sorted(result.image_ranks.tolist()) == media
    assert (result.metrics["txt_r1"], result.metrics["img_r5"]) == (5.0, 25.0)
    assert (result.metrics["txt_mdR"], result.metrics["img_mnR"]) == (10.5, 10.5)


def test_many_captions_of_one_medium_each_ask_for_it_and_the_best_of_them_is_its_answer():
    media = [0] * 5 + [1] + [2] * 3
    model = StandIn(4, 9, seed=2)  # medium 3 has no caption: it is in the gallery, and asks for nothing
    result = evaluate(model, 4, media, k=9)
    scores = model.match_scores
    for image in range(3):
        own = [t for t, medium in enumerate(media) if medium == image]
        assert int(result.image_ranks[image]) == int((scores[image] > scores[image, own].max()).sum())
    expected = [int((scores[:, t] > scores[medium, t]).sum()) for t, medium in enumerate(media)]
    assert result.text_ranks.tolist() == expected
    assert int(result.image_ranks[3]) == -1
    assert result.metrics["txt_mnR"] == pytest.approx(float(result.image_ranks[:3].double().mean()) + 1)


@pytest.mark.parametrize("broken", ["image", "text", "match_scores"])
def test_scores_that_are_no_numbers_are_an_error_and_not_a_hit(broken):
    model = StandIn(8, 8, seed=0)
    getattr(model, broken)[3] = float("nan")
    with pytest.raises(AuroraError, match="not finite"):
        evaluate(model, 8, list(range(8)), k=8)


def test_recall_names_and_percentages():
    metrics = recall(torch.tensor([0, 4, 9, 30]), torch.tensor([0, 0, 0, 5]))
    assert (metrics["txt_r1"], metrics["txt_r5"], metrics["txt_r10"]) == (25.0, 50.0, 75.0)
    assert (metrics["img_r1"], metrics["img_r5"], metrics["img_r10"]) == (75.0, 75.0, 100.0)
    assert metrics["r_mean"] == pytest.approx((50.0 + (75 + 75 + 100) / 3) / 2)
    assert (metrics["txt_mdR"], metrics["txt_mnR"], metrics["img_mdR"], metrics["img_mnR"]) == (
        7.5,
        11.75,
        1.0,
        2.25,
    )
    clips = recall(torch.tensor([0, 4, 9, 30]), torch.tensor([0, 0, 0, 5]), "vid")
    assert clips == {name.replace("img_", "vid_"): value for name, value in metrics.items()}
