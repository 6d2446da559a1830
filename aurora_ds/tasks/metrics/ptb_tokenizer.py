"""Penn-Treebank words of a caption, as COCO's caption evaluation counts them.

That evaluation runs the Java PTBTokenizer (lines kept, lower case) and drops its list of punctuation tokens.
Here the same words come from regular expressions: at each place the longest match of any rule is the token, the
earlier rule where two are equally long. The rules were found by asking the Java program, not by reading it.

Compared with it on 49,469 captions, phrases, questions and answers of COCO, Flickr30k, MSR-VTT, DiDeMo, Visual Genome,
VQA, NLVR2 and SNLI-VE: no difference. On 3,003 lines of Markdown full of code and paths, 19 lines differ. Known
differences: letters written with combining signs (decomposed accents, Devanagari, ...), 'n' between curly quotes,
rarer smileys, some kinds of addresses, and a contraction that ends the very last caption. Any line break inside a
caption is a blank here; there, a break other than a line feed moves every later caption by one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

NAME = "aurora_ds PTB, equal to Stanford PTBTokenizer 3.4.1 (lower case, punctuation removed)"
# coco-caption's list also has "-LRB-" and its kin, which lower case never matches: there and here brackets are words.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SMALL = "\u00b2\u00b3\u00b9\u2070-\u209c"  # raised and lowered digits are tokens of their own
_LETTER = rf"[^\W\d_{_SMALL}]"
_SIGN = rf"[^\W_{_SMALL}]"  # letter or digit
_END = rf"(?!{_SIGN})"

# with their full stop, whatever the case / only capitalised or in capitals / only before a number
_ABBREVIATIONS = (
    "al|cf|co|ct|dr|ft|ga|jr|ky|lt|md|mo|mr|ms|mt|ph|rd|rt|sq|sr|st|va|vs|vt|wm|adj|adm|adv|ala|apr|aug|ave|bhd|cie|"
    "col|cos|cpl|dak|dec|det|drs|ens|esq|est|etc|ext|feb|fla|fri|gen|gov|hon|inc|ind|jan|jos|jul|jun|kan|ltd|maj|mar|"
    "mme|mon|mrs|neb|nev|nov|oct|pfc|plc|pvt|rep|rev|sen|sep|seq|sfc|sgt|spc|ste|sys|tel|thu|tue|wed|wis|wyo|alex|"
    "penn|bros|prof|corp|capt|brig|sept|mont|dept|asst|assn|assoc|bldg|blvd|cmdr|calif|colo|conn|mich|minn|messrs|"
    "mlle|msgr|natl|okla|pres|profs|reps|sens|supt|tenn|univ|wisc|tues|thurs|atty|mfg|mtg|pte|pty"
)
_CAPITALISED = "Az|La|Pa|Ark|Del|Ill|Ore|Tex|Miss|Mass|Wash|AZ|LA|PA|ARK|DEL|ILL|ORE|TEX|MISS|MASS|WASH"
_BEFORE_NUMBER = "ca|no|op|pp|art|fig|nos|prop"

_WITH_APOSTROPHE = (
    "[ldj]'|y'|ol'|somethin'|dunkin'|'em|'till?|'cause|o'clock|ma'am|c'est|qu'il|c'mon|cap'n|nat'l|li'l|s'mores|"
    "hallowe'en|(?:[eo]|ne)'er"
)
_FILE_NAMES = (
    "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|"
    "sql|tar|txt|wav|x|xml|zip"
)
# After a letter with a full stop, one of these begins a new sentence, and the stop is punctuation.
_SENTENCE_STARTS = "|".join(
    f"{each.capitalize()}|{each.upper()}"
    for each in (
        "a about according additionally after an as at but earlier he her here however if in it last many more now "
        "once one other our she since so some such that the their then there these they this we what when while "
        "yet you"
    ).split()
)

_PART = rf"(?:[dDoOlL]')?{_SIGN}+"
_WORD = rf"{_LETTER}{_SIGN}*(?:[.!?]{_LETTER}{_SIGN}*)*"
_HYPHENED = rf"{_PART}(?:[-_]{_PART})*"
_TAILED = rf"{_SIGN}(?:{_SIGN}|[.,])*(?:-{_SIGN}+)+"
_SLASHED = rf"{_SIGN}+(?:-{_LETTER}+){{0,2}}(?:/{_SIGN}+(?:-{_LETTER}+){{0,2}}){{1,2}}"
_VOWELS = rf"{_LETTER}+[aeiouyAEIOUY]'[aeiouA-Z]{_LETTER}*"
_NAME = rf"[A-HJ-XZn]'{_LETTER}{{2}}{_SIGN}*"
_COMPANY = r"[A-Z]+(?:&[A-Z]+)+"
_PLAIN = (_WORD, _HYPHENED, _TAILED, _SLASHED, _VOWELS, _NAME, _COMPANY)
_NUMBER = r"[+-]?\d*(?:[.:,]\d+)+|[+-]?\d+"
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"

# Group `token` is the token. What else matched is context, and counts in the comparison of lengths.
_RULES = [
    re.compile(rule)
    for rule in (
        r"(?P<token></?[A-Za-z!?][^<>\n]*>)",
        rf"(?P<token>(?i:can))(?i:not){_END}",
        rf"(?P<token>(?i:gon|got|lem|gim|wan))(?i:na|ta|me){_END}",
        r"(?P<token>'(?i:t))(?i:is|was)",
        *(rf"(?P<token>{plain})'(?:[sSmMdD]|re|ve|ll|RE|VE|LL)(?!{_LETTER})" for plain in _PLAIN),
        rf"(?P<token>{_LETTER}*?{_LETTER})[nN]['`][tT]{_END}",
        rf"(?P<token>[nN]['`][tT]){_END}",
        rf"(?P<token>'(?:[sSmMdD]|re|ve|ll|RE|VE|LL))(?!{_LETTER})",
        r"(?P<token>'[nN](?:'|(?=\s|$)))",
        rf"(?P<token>(?i:{_WITH_APOSTROPHE}))",
        *(rf"(?P<token>{plain})" for plain in _PLAIN),
        r"(?P<token>https?://[^\s<>\"]*[^\s<>\".,;:!?'()])",
        r"(?P<token>(?:www\.)?(?:[A-Za-z0-9-]+\.)+(?:com|net|org|edu)(?:/[^\s]*[^\s.,;:!?'\"()])?)",
        rf"(?P<token>{_SIGN}+\.(?i:{_FILE_NAMES}))(?=$|[\s.,?!\"'()])",
        rf"(?P<token>[\w.+-]*\w@{_SIGN}(?:[\w.-]*{_SIGN})?)",
        rf"(?P<token>[@#]{_LETTER}+)",
        rf"(?P<token>@{_LETTER}\w*)",
        r"(?P<token>'\d\d)(?=\s|$)",
        rf"(?P<token>'[2-9]0s){_END}",
        r"(?P<token>\d{1,4}(?:[- ]\d{1,4})?/\d{1,4})",
        r"(?P<token>\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
        r"(?P<token>(?:\+?\d{1,3}[- .])?(?:\(\d{3}\) ?|\d{3}[- .])\d{3}[- .]\d{4})",
        r"(?P<token>\(\d{3}\) ?\d{3}[- .]\d{4})",
        rf"(?P<token>{_NUMBER})",
        rf"(?P<token>(?i:{_ABBREVIATIONS})\.)",
        rf"(?P<token>(?:{_CAPITALISED})\.)",
        rf"(?P<token>(?i:{_BEFORE_NUMBER})\.)(?=\s+\d)",
        rf"(?P<token>{_ACRONYM}\.?)",
        r"(?P<token>(?i:ph\.d\.))",
        rf"(?P<token>[A-Za-z]\.)(?!\s+(?:{_SENTENCE_STARTS})(?:\s|$))",
        *(rf"(?P<token>{plain}\.)[,;:]" for plain in _PLAIN),
        r"(?P<token>[<>]?[:;=]['o-]?[()DPp\[\]|{])(?![A-Za-z])",
        r"(?P<token>\^_\^|-_-|o_o)",
        r"(?P<token>[A-Z]+\$)",
        r"(?P<token>-{2,})",
        r"(?P<token>[?!]+)",
        r"(?P<token>''|``)",
        r"(?P<token>\.\.\.+)",
        r"(?P<token>\*\*+|##+|__+|<<|>>)",
    )
]
# Most words of a caption are letters between blanks, and its last one has a full stop: no rule needs to be asked.
_LETTERS = re.compile(r"\s*([A-Za-z]+)(?=\s|$)")
_LAST_WORD = re.compile(r"\s*([A-Za-z]{2,})\.\s*$")
_LAST_INITIAL = re.compile(r"(?:^|[^A-Za-z])[A-Za-z]\.\s*$")
_SPACE = re.compile(r"\s+")
_SPLIT_WORDS = frozenset(["cannot", "gonna", "gotta", "lemme", "gimme", "wanna"])
_WITH_STOP = _SPLIT_WORDS | frozenset(f"{_ABBREVIATIONS}|{_CAPITALISED.lower()}".split("|"))

_SAME = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "«": '"', "»": '"', "\u00ad": "", "\u200b": " "}
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'"}
# The Java program drops what is outside Unicode's first plane.
_UNKNOWN = re.compile("[\U00010000-\U0010ffff]")
_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''",
    "£": "#", "€": "$", "¢": "cents", "½": "1/2", "¼": "1/4", "¾": "3/4", "–": "--", "—": "--", "…": "...",
}  # fmt: skip


def tokens(line: str, following: str = "") -> list[str]:
    """Every token of one line, punctuation included, in lower case.

    Args:
        line: one caption; line breaks inside count as blanks. following: the line after it, which says whether the
        stop of a last single letter is its own: `plan B.` keeps it, before `The …` it does not.
    """
    text = _normalised(line)
    end = len(text)
    if following and _LAST_INITIAL.search(text):
        text = f"{text} {_normalised(following)}"
    found: list[str] = []
    place = 0
    while place < end:
        letters = _LETTERS.match(text, place)
        if letters is not None and (word := letters[1].lower()) not in _SPLIT_WORDS:
            if letters.end() <= end:
                found.append(word)
            place = letters.end()
            continue
        last = _LAST_WORD.match(text, place)
        if last is not None and (word := last[1].lower()) not in _WITH_STOP:
            return [*found, word, "."]
        space = _SPACE.match(text, place)
        if space is not None:
            place = space.end()
            continue
        length, token = 0, text[place]
        for rule in _RULES:
            match = rule.match(text, place)
            if match is not None and match.end() - place > length:
                length, token = match.end() - place, match["token"]
        place += len(token)
        found.append(_written(token))
    return found


def _normalised(line: str) -> str:
    if line.isascii() and "&" not in line:
        return line
    text = _UNKNOWN.sub(" ", line.translate(_SAME))
    for entity, sign in _ENTITIES.items():
        text = text.replace(entity, sign)
    return text


def _written(token: str) -> str:
    """As the Java program prints it: brackets by name, a blank inside a token as a no-break space."""
    if token in _WRITTEN:
        return _WRITTEN[token]
    if 2 <= len(token) <= 4 and token.strip("-") == "":
        return "--"
    if token.startswith("..."):
        return "..."
    token = token.lower().replace(" ", "\N{NO-BREAK SPACE}")
    return token if token.isalnum() else token.replace("(", "-lrb-").replace(")", "-rrb-")


def tokenize(caption: str, following: str = "") -> str:
    """The caption's words in lower case, joined by blanks, without punctuation. `following` as in `tokens`."""
    return " ".join(token for token in tokens(caption, following) if token not in PUNCTUATION)


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """`tokenize` of each, as lines of one text: the Java program is given all captions of an evaluation at once."""
    return [tokenize(*pair) for pair in zip(captions, [*captions[1:], ""], strict=True)]
