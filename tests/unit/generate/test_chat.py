"""A chat: an image belongs to the question it came with, and no mistake ends the conversation or stays in it."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from PIL import Image

from megatron_v2pe.errors import DataError
from megatron_v2pe.generate import chat as chat_module
from megatron_v2pe.generate.chat import Chat


class Model:
    """Answers with what it was asked; refuses a question with the word `refuse`."""

    adapters = None

    def __init__(self, refuse="nothing"):
        self.asked = []
        self.refuse = refuse

    def ask(self, questions, tiling, options, on_text):
        (question,) = questions
        places = sum(text.count("<image>") for _, text in question.turns)
        if places != len(question.images) or self.refuse in question.turns[-1][1]:
            raise DataError(f"{question.name}: refused")
        self.asked.append(question)
        on_text(0, "fine <image>")
        return [SimpleNamespace(text="fine <image>")]


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """Return a function that types lines into a chat and returns the model and all that was printed."""
    monkeypatch.setattr(chat_module, "raise_on_all_ranks", lambda action, group: action())
    monkeypatch.setattr(chat_module, "model_copy_group", lambda: None)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    for name in ("a.png", "b.png", "a cat.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def type_in(*lines, model=None, **changes):
        model, said = model or Model(), []
        typed = iter([*lines, None])
        chat: Any = Chat
        chat(model, SimpleNamespace(operations=()), None, **changes).run(lambda: next(typed), said.append)
        return model, "".join(said)

    return type_in


def asked(model):
    return ["|".join(text for role, text in one.turns if role == "human") for one in model.asked]


def test_text_first_and_a_picture_later(talk):
    model, said = talk("Hello", "/image a.png", "What is this?", "And now?")
    assert asked(model) == ["Hello", "Hello|<image>\nWhat is this?", "Hello|<image>\nWhat is this?|And now?"]
    assert [len(one.images) for one in model.asked] == [0, 1, 1] and "error" not in said


def test_several_pictures_get_lines_and_numbers_of_their_own(talk):
    model, _ = talk("/image a.png b.png", "Two?", '/image "a cat.png"', "/image a cat.png", "Again?")
    assert asked(model)[-1] == "Image-1: <image>\nImage-2: <image>\nTwo?|Image-3: <image>\nImage-4: <image>\nAgain?"
    assert list(model.asked[-1].images) == ["a.png", "b.png", "a cat.png", "a cat.png"]


def test_pictures_of_the_command_line_are_shown_first(talk):
    model, said = talk("What is this?", waiting=["b.png"])
    assert asked(model) == ["<image>\nWhat is this?"] and "b.png: 30 x 20" in said


def test_a_question_may_place_its_pictures_itself(talk):
    model, said = talk("/image a.png b.png", "this <image> or", "this <image> or this <image>?")
    assert asked(model) == ["this <image> or this <image>?"]
    assert "1 <image> in the question, but 2 images wait to be shown: write <image> once for each" in said


def test_a_mistake_leaves_the_conversation_as_it_was(talk):
    model = Model(refuse="bad")
    lines = ("Hello", "/image a.png", "bad", "/image", "/image gone.png a.png", "lost <image>", "And now?")
    _, said = talk(*lines, model=model)
    assert asked(model) == ["Hello", "Hello|And now?"] and model.asked[-1].images == []
    assert "turn 1: refused" in said and "so are its images" in said
    assert "/image: name a file" in said and "gone.png: no such image" in said
    assert model.asked[-1].turns[1] == ("gpt", "fine")  # what a model spells is no place for an image


def test_reset_forgets_all(talk):
    model, _ = talk("/image a.png", "One?", "/image b.png", "/reset", "Two?")
    assert asked(model) == ["<image>\nOne?", "Two?"]


class Impatient(Model):
    """Is interrupted from the keyboard in the middle of an answer to a question with the word `refuse`."""

    def ask(self, questions, tiling, options, on_text):
        if self.refuse in questions[0].turns[-1][1]:
            on_text(0, "It is a long")
            raise KeyboardInterrupt
        return super().ask(questions, tiling, options, on_text)


def test_an_answer_that_is_stopped_leaves_the_conversation_as_it_was(talk, monkeypatch):
    model, said = talk("Hello", "/image a.png", "tell all", "What is this?", model=Impatient(refuse="all"))
    assert asked(model) == ["Hello", "Hello|<image>\nWhat is this?"]
    assert "It is a long\nThe answer is stopped and its question forgotten; its images wait" in said
    monkeypatch.setattr(chat_module, "_read_for_all_ranks", lambda read, first: read())
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(KeyboardInterrupt):  # processes stop in different places and would wait for each other
        talk("tell all", model=Impatient(refuse="all"))


def test_ctrl_c_ends_a_line_and_twice_the_conversation(monkeypatch, capsys):
    module = importlib.import_module("tools.generate")
    typed = iter([KeyboardInterrupt, "Hello", KeyboardInterrupt, KeyboardInterrupt, EOFError])

    def line(prompt):
        if isinstance(one := next(typed), str):
            return one
        raise one

    monkeypatch.setattr("builtins.input", line)
    assert [module._read_line() for _ in range(3)] == ["Hello", None, None]
    assert "Ctrl-C again, or Ctrl-D, ends the conversation" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["/exit", "/quit", " /quit "])
def test_a_conversation_is_left(talk, word):
    assert asked(talk("One?", word, "Two?")[0]) == ["One?"]
