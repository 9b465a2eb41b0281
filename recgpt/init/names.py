"""What the names of columns say: words of users, items, clocks, outcomes and contexts."""

from __future__ import annotations

import re

USER = (
    "user usr uid customer client member visitor person player viewer reader listener subscriber buyer "
    "shopper reviewer consumer account msno cust household patient student learner usuario utilisateur "
    "benutzer kunde cliente 用户 пользователь session sid device cookie"
).split()
"""The first ones are preferred."""
USER_WEAK = {"session", "sid", "device", "cookie", "account", "household"}
ITEM = (
    "item iid product prod sku asin movie film video clip song track music book article news story post "
    "content ad creative listing offer good goods merchandise game app recipe restaurant business venue poi "
    "place hotel job course lesson doc document page url photo image pin show anime artist title artikel "
    "produkt articulo produit 商品 物品 товар"
).split()
ITEM_WEAK = {"page", "url", "title", "artist", "show", "place", "content", "parent", "image", "photo"}
ID_WORDS = set("id ids key code hash no nr number idx uuid guid encoded anonymous raw".split())
NO_ID = set(
    (
        "num count cnt counts age type kind name degree rate ratio score range agent feature feat lat lon gender "
        "sex city time date ts is active rating ratings group category cat price brand description desc image "
        "text level status state activity days len length duration size width height language lang country region "
        "zip tag tags year genre genres"
    ).split()
)
TIME = (
    "timestamp time ts datetime date clock when unixtime unix epoch created moment day t fecha zeit datum 时间 время"
).split()
NO_TIME = set(
    (
        "upload uploaded birth birthday register registered registration signup join joined release released "
        "publish published update updated expire expires end stop play played watch watched stay stayed dwell "
        "spent zone timezone load delivery listen listened duration length parsed first since until"
    ).split()
)
ORDER = ("order pos position seq sequence step rank idx index ordinal nth place event row number no nr").split()
NO_ORDER = {"id", "date", "time", "type", "slot", "page", "screen", "list", "phone", "account"}

OUTCOME = set(
    (
        "click clicks clicked like likes liked dislike disliked buy bought purchase purchased ordered conversion "
        "converted convert follow followed share shared forward forwarded comment commented hate hated report "
        "reported save saved favorite favourite favorited fav collect collected download downloaded install "
        "installed cart addtocart finish finished complete completed skip skipped label target reward positive "
        "view viewed watch watched read enter entered subscribe subscribed upvote downvote reply replied repost "
        "retweet hide hidden engaged engagement success feedback response listened played rated booked applied "
        "hired opened 点击 购买"
    ).split()
)
GRADE = set("rating ratings stars star score grade overall vote points mark note bewertung 评分".split())
SPENT = set(
    "play played playing watch watched watching dwell stay stayed listen listened viewing spent engagement".split()
)
AMOUNT = set("time seconds second secs sec ms msec millis minutes minute mins duration length played s".split())
CONTEXT = set(
    (
        "tab device platform os browser country region locale language lang channel surface placement slot hour "
        "weekday dow network carrier referrer referer scene daypart version store weather"
    ).split()
)
ACTION = set("event action behavior behaviour activity interaction type".split())
SESSION = {"session", "sessionid", "sess", "visit"}
PART = {"part", "split", "fold", "set", "subset", "partition", "phase"}
PARTS = {
    "train": {"train", "training", "history", "tr", "fit"},
    "valid": {"valid", "val", "validation", "dev", "eval"},
    "test": {"test", "testing", "holdout", "tst", "te"},
}
NUMBERS = set(
    "age days day num number count amount price cost len length duration size width height year rank level".split()
)
"""Words of whole numbers that are amounts rather than categories."""
_AFTER = re.compile(
    "(play|stay|watch|dwell|finish|complet|listen)(s|e|ed|ing|ion|time|d)*|ratio|cnt|nums?|counts?|ctr|cvr|clicks|views"
)


def shown(name: str) -> str:
    """A name as it may stand in a comment: on one line, without what YAML does not read."""
    return name if name.isprintable() and name.strip() == name and name else ascii(name)


def tokens(name: str) -> list[str]:
    """The words of a column name, lower case: `userID`, `user_id`, `User Id` and `userid` give user, id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    words = re.findall(r"[a-z]+|[0-9]+|[^\W\d_a-z]+", spaced)
    result: list[str] = []
    for word in words:
        stem = word.removesuffix("id")
        result += [stem, "id"] if stem != word and (stem in USER or stem in ITEM) else [word]
    return result


def id_score(name: str, words: list[str], weak: set[str]) -> float:
    """How clearly a name is that of an id: 3 `user_id`, 2 `sas_user`, less for a weak word, 0 not at all."""
    parts = [part for part in tokens(name) if part not in ID_WORDS and not part.isdigit()]
    found = [part for part in parts if part in words]
    if not found or NO_ID & set(parts):
        return 0
    score = 3.0 if len(found) == len(parts) else 2.0
    return score - (0.5 if set(found) <= weak else 0) - words.index(found[0]) / 1000


def time_score(name: str) -> float:
    """How clearly a name is that of the event's clock."""
    parts = tokens(name)
    found = [part for part in parts if part in TIME or part.removesuffix("time") == "review"]
    if not found or NO_TIME & set(parts):
        return 0
    return (3.0 if len(parts) <= 2 else 2.0) - (TIME.index(found[0]) if found[0] in TIME else 0) / 1000


def order_score(name: str) -> float:
    """How clearly a name is that of a position in the user's sequence."""
    parts = tokens(name)
    if NO_ORDER & set(parts) or not any(part in ORDER for part in parts):
        return 0
    return 3.0 if len(parts) == 1 else 2.0


def is_known_name(name: str) -> bool:
    """Whether a word of the name is known, so that it is more likely a name than a value."""
    parts = set(tokens(name))
    known = OUTCOME | GRADE | SPENT | CONTEXT | ACTION | PART | NO_ID | {*USER, *ITEM, *TIME, *ORDER}
    return bool(parts & known)


def is_after(name: str) -> bool:
    """Whether a name is of what is measured after an item was shown, or counted over a time that may be tested on."""
    return any(_AFTER.fullmatch(part) for part in tokens(name))
