"""Somebody with a browser and no scripts: reads pages, follows links, fills in forms and presses buttons.

What is sent is what the page's own HTML says, with the values it came with; only what is typed or chosen is
given. `Page.text` is what can be read, `alerts` what is read out at once, `focused` where it begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin

import requests

UNREAD = {"title", "style", "script"}
ENDLESS = {"input", "meta", "link", "br"}


@dataclass
class Form:
    method: str
    action: str
    values: dict[str, str] = field(default_factory=dict)
    options: dict[str, list[str]] = field(default_factory=dict)  # of the radio buttons


@dataclass
class Button:
    text: str
    name: str | None
    form: Form


@dataclass
class Link:
    text: str
    url: str


class Page(HTMLParser):
    def __init__(self, answer: requests.Response) -> None:
        super().__init__()
        self.answer, self.status, self.url = answer, answer.status_code, answer.url
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.anchors: list[Link] = []
        self.buttons: list[Button] = []
        self.refresh: str | None = None
        self.open: list[str] = []
        self.words: list[str] = []
        self.form = Form("get", "")
        self.feed(answer.text)
        self.text = " ".join("".join(self.words).split())
        self.links = {" ".join(link.text.split()): link.url for link in self.anchors}
        self.title = unescape(re.findall(r"<title>([^<]*)<", answer.text)[0])
        self.focused = [given.get("id") for _, given in self.tags if "autofocus" in given]
        self.alerts = [unescape(text) for text in re.findall(r'role="alert">([^<]*)<', answer.text)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag not in ENDLESS:
            self.open.append(tag)
        if tag == "form":
            self.form = Form(given.get("method", "get"), urljoin(self.url, given.get("action", self.url)))
        elif tag in ("input", "textarea"):
            self.take(given)
        elif tag == "button":
            self.buttons.append(Button("", given.get("name"), self.form))
        elif tag == "a":
            self.anchors.append(Link("", given["href"]))
        elif tag == "meta" and given.get("http-equiv") == "refresh":
            self.refresh = given["content"].removeprefix("0; url=")

    def take(self, given: dict[str, str]) -> None:
        if given.get("type") == "radio":
            self.form.options.setdefault(given["name"], []).append(given["value"])
        if given.get("type") != "radio" or "checked" in given:
            self.form.values[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not UNREAD & set(self.open):
            self.words.append(data)
        if "button" in self.open:
            self.buttons[-1].text = " ".join(f"{self.buttons[-1].text}{data}".split())
        if "a" in self.open:
            self.anchors[-1].text += data

    def button(self, text: str) -> Button:
        return next(button for button in self.buttons if button.text == text)

    def offers(self, text: str) -> bool:
        """Whether there is such a button or link."""
        return text in self.links or any(button.text == text for button in self.buttons)

    def press(self, text: str, **typed: Any) -> Page:
        button = self.button(text)
        unknown = typed.keys() - button.form.values.keys() - button.form.options.keys()
        assert not unknown, f"the form has no {unknown}"
        values = button.form.values | typed | ({button.name: ""} if button.name else {})
        if button.form.method == "get":
            return Page(requests.get(button.form.action, params=values))
        return Page(requests.post(button.form.action, data=values))

    def follow(self, text: str) -> Page:
        return visit(urljoin(self.url, self.links[text]))


def visit(url: str) -> Page:
    return Page(requests.get(url.replace("localhost", "127.0.0.1")))
