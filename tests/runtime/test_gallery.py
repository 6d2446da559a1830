"""The gallery: size and layout, marks in the right colour, any text and picture size."""

from __future__ import annotations

import numpy as np

from aurora_ds.runtime.gallery import RIGHT, WRONG, Answer, Query, gallery


def picture(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def count(page: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((page == np.array(colour, np.uint8)[:, None, None]).all(0).sum())


def test_a_text_query_frames_right_answers_green_and_wrong_ones_red() -> None:
    answers = [Answer(picture(60, 90), right=place == 2) for place in range(5)]
    page = gallery([Query("a red ball left of a box", answers)])
    assert page.dtype == np.uint8 and page.shape[0] == 3
    assert 3 < count(page, WRONG) / count(page, RIGHT) < 5


def test_a_picture_query_lists_its_captions() -> None:
    answers = [Answer("a caption", True, 1.5), Answer("a very long caption " * 40, False)]
    page = gallery([Query(picture(300, 20), answers)])
    assert count(page, RIGHT) > 50 and count(page, WRONG) > 50


def test_answers_that_are_neither_right_nor_wrong_have_neither_colour() -> None:
    page = gallery([Query(picture(60, 90), [Answer("a caption", None, 0.5, label="written")])])
    assert count(page, RIGHT) == count(page, WRONG) == 0
    other = gallery([Query(picture(60, 90), [Answer("a caption", None, 0.5, label="another word")])])
    assert (page != other).any()


def test_rows_are_stacked_and_more_answers_than_columns_are_left_out() -> None:
    one = gallery([Query("q", [Answer(picture(9, 9), True)] * 9)])
    two = gallery([Query("q", [Answer(picture(9, 9), True)] * 5)] * 2)
    assert two.shape[1] == 2 * one.shape[1] and two.shape[2] == one.shape[2]


def test_only_ranked_answers_are_numbered() -> None:
    query = Query(picture(9, 9), [Answer("a caption", None, label="written")] * 2)
    plain, numbered = gallery([query])[:, :, 300:], gallery([query], ranked=True)[:, :, 300:]
    ink = [int((page < 200).any(0).sum()) for page in (plain, numbered)]
    assert ink[0] < ink[1] and plain.shape == numbered.shape


def test_no_queries_empty_texts_and_words_without_end_are_drawn() -> None:
    assert gallery([]).shape[0] == 3
    gallery([Query("", []), Query("x" * 500, [Answer("y" * 900, False), Answer("", True)])])
