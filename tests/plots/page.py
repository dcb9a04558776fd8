"""A page of HTML as somebody reads it who did not write it."""

import html.parser

VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}


class Page(html.parser.HTMLParser):
    """The tags, attributes and words of a page; raises where a tag is not closed."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.styles, self.rows, self._open = [], [], [], [], []
        self.words = ""
        self.feed(source)
        self.close()
        assert self._open == []

    @property
    def ids(self):
        return [value for name, value in self.attributes if name == "id"]

    @property
    def text(self):
        return " ".join(self.words.split())

    def cells(self, name):
        """What stands beside a name in the tables."""
        (found,) = [row[1:] for row in self.rows if row[0] == name]
        return found

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.words += "" if tag == "wbr" else " "

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        self.words += " "

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.styles.append(data)
            return
        self.words += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
