"""Class names that tell left from right, whose clips must not be mirrored as if nothing had changed."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from ..errors import one_line

log = logging.getLogger('bvtam')


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Words that surely mean a direction and its opposite: clips are mirrored and labels swapped.
_MIRRORED = {
    'left': 'right',
    'leftward': 'rightward',
    'leftwards': 'rightwards',
    'leftmost': 'rightmost',
    'lefthand': 'righthand',
    'lefthanded': 'righthanded',
    'clockwise': 'counterclockwise',
}
_MIRRORED |= {b: a for a, b in _MIRRORED.items()}
_DIRECTION = re.compile('counterclockwise|clockwise|left|right')
_NO_DIRECTION = _listed(
    'alright aright birthright bright cartwright cleft copyright downright eyebright forthright fright '
    'leftover leftovers millwright outright playwright righteous rightful shipwright upright wright'
)  # words of English that hold one all the same

# What follows is never mirrored: that costs some variety of the clips, where a direction that goes
# unseen costs its class. So words with other meanings too are in here. Latin letters are without accents.
_WORDS = _listed(
    # English and compass points
    'lefty lefties righty righties lefthander righthander lft rgt rght lt rt lh rh lhs rhs lr rl ltr rtl '
    'southpaw starboard larboard portside sinistral dextral widdershins deosil sunwise oclock yaw '
    'east eastern easterly west western westerly nw sw nne nnw sse ssw wnw wsw '
    # signs that are drawn, of which the mirror image is another one or drawn the other way round
    'cc circlecc circlecw circlec tick ticks tickmark checkmark caret carret zigzag pigtail letter digit '
    # Romance
    'izq izqda izqdo izda izdo zurda zurdo dcha dcho diestra diestro zquierda gauche droite tribord babord '
    'senestre dextre horaire antihoraire ouest sinistra sinistro sinistre sinistri destra destro destre '
    'destri sx dx mancino orario antiorario ovest horario antihorario esq canhoto oeste leste '
    'esquerra dreta dereita stanga stang stangul dreapta drept dreptul '
    # Germanic
    'linke linken linkem linkes links rechte rechten rechtem rechter rechtes rechts osten westen '
    'ostwarts westwarts ost backbord steuerbord oost oosten bakboord stuurboord regs vinstri haegri hægri '
    'vanster vanstra hoger hogra venstre hojre højre hoejre hoyre høyre medurs moturs uzs oster vaster '
    # Slavic and Baltic
    'lewo lewa lewy lewe lewej lewą lewym prawo prawa prawy prawe prawej prawym zegara leva levo levy leve '
    'leveho vlevo doleva prava pravo pravy prave vpravo doprava vlavo dolava lava lavy lave lijevo lijeva '
    'lijevi desno desna desni nalevo naprava napravo wlewo wprawo vlievo wschod zachod vychod zapad istok '
    'kreisi kreisa labi laba kaire kairen desine desinen '
    # Uralic, Turkic and others of Europe
    'vasen vasempaan vasemmalle oikea oikealle myotapaivaan vastapaivaan ita lansi vasak vasakule parem '
    'paremale bal balra jobb jobbra kelet nyugat sol sola soldan solak sag saga sagdan dogu bati batı ezker '
    'eskuin chwith majtas djathtas sinister dexter dextra levus '
    # Asia and Africa in Latin letters
    'kiri kanan trai phai kaliwa timur barat kushoto kulia mashariki magharibi bidix midig hidari migi '
    'higashi nishi zuo zuobian youbian xiangzuo xiangyou zuozhuan youzhuan zuoshou youshou oenjjok wenjjok oreunjjok baayen baayein daayen '
    'daayein bayen dayen baaye daaye dahina yasar yameen yamin shimal smol smola yamina'
)
_STEMS = _listed(  # of words that end in many ways
    'izquierd derech gauch droit sinistrors destrors esquerd direit linker links rechterh '
    'rechts venstre højre hojre høyre hoyre uhrzeiger kloksgewijs vasem oikeal oikeas vanster hogers anticlock counterclock contraclock '
    'antihorari antiorari eastward westward eastbound westbound northeast northwest southeast southwest '
    'maldekstr dekstr lijev desnic ezkerr eskuin nalijev nadesn'
)
_OTHER_SCRIPTS = _listed(  # found anywhere, since many scripts put no spaces between words
    '左 右 东 東 西 时针 時針 時計 ひだり みぎ ヒダリ ミギ レフト 왼 오른 좌 우측 우회 우로 시계 동쪽 서쪽 '
    'лев лів ляв прав дясн десн часов стрелк восто запад схід захід зүүн баруун солға оңға αριστερ δεξι '
    'ανατολ δυτικ يسار يمين شمال شرق غرب چپ راست بائی دائی שמאל ימין ימינ מזרח מערב बाए बायें बाया बायीं दाए '
    'दायें दाया दायीं दाहिन डाव उजव বাম বাঁ ডান இடது வலது ఎడమ కుడి ಎಡ ಬಲ ഇടത വലത ડાબ જમણ ਖੱਬ ਸੱਜ වම් දකුණ ซ้าย ขวา '
    'ຊ້າຍ ຂວາ ဘယ် ညာ ឆ្វេង ស្តាំ ស្ដាំ მარცხ მარჯვ ձախ աջ ግራ ቀኝ'
)
_SIGNS = re.compile('[←→↔↖↗↘↙↚-⇿⟲⟳⟵-⟷⤴⤵⬅⬈-⬋➔-➡👈👉☚☛☜☞⮂-⯑]|<[-=]|[-=]>|[-+]x\\b|\\bx[-+]')
# Words that mean a direction beside a label that has the other one in its place, and much else alone.
_PAIRS = [
    set(pair.split('/'))
    for pair in _listed(
        'l/r g/d i/d s/d e/d l/d l/p p/l v/h b/j e/w e/o o/w v/z k/l izq/der esq/dir sin/des sin/dx '
        'est/ouest est/ovest est/vest este/oeste zuo/you levo/pravo port/starboard linke/rechte link/recht '
        'linker/rechter lewy/prawy levy/pravy л/п з/в cw/ccw cw/acw cw/ac chap/rast lef/rig ne/nw se/sw '
        'tl/tr bl/br ul/ur ll/lr fl/fr rl/rr li/re pos/neg positive/negative plus/minus nearside/offside'
    )
]
_LONE_SIGNS = re.compile(r'(?<!\w)[^\w\s]|[^\w\s](?!\w)')  # not those that join two words
_L_OR_R = str.maketrans('lr', 'rl')  # Lhook, Rhook
# Names of which no word tells anything.
_NUMBERED = {'action', 'c', 'category', 'class', 'classe', 'clase', 'cls', 'gesture', 'id', 'klasse', 'label'}  # fmt: skip


def flip_label_map(label_names: Sequence[str]) -> dict[int, int]:
    """Label of the mirror image of a clip, for every label whose clips may be mirrored.

    Two labels are a pair if they turn into each other by swapping the English words left and right,
    clockwise and counterclockwise (or anticlockwise, CW and CCW); hyphens, underscores, capitals and
    digits beside them do not matter, nor do letters where the other label is there: turnleft,
    turnright. A label that names no direction is its own mirror image. One that names one without
    exactly one partner, or in another way (swipe_L, gauche, east, 左), is left out, so that its clips
    are never mirrored, and a warning names it.
    """
    keys = [_words(name) for name in label_names]
    places = defaultdict(list)
    for label, key in enumerate(keys):
        places[key].append(label)
    names = {key: [label_names[label] for label in labels] for key, labels in places.items()}
    found, alone = {}, []
    for label, key in enumerate(keys):
        mirrored = tuple(_MIRRORED.get(word, word) for word in key)
        partners = places.get(mirrored, [])
        rest = tuple(word for word in key if word not in _MIRRORED)
        if mirrored == key:
            # Where a direction is part of a word, the partner shows that it is one.
            glued = tuple(_DIRECTION.sub(lambda match: _MIRRORED[match[0]], word) for word in key)
            partners = places.get(glued, []) if glued != key else []
            rest = () if partners else key
            partners = partners or [label]
        name = label_names[label]
        if len(partners) != 1 or any(map(_is_direction, rest)) or _marked(name, key, names):
            alone.append(name)
        else:
            found[label] = partners[0]
    if alone:
        log.warning(
            'clips of %d labels are never mirrored, as they name a direction that cannot be swapped with '
            'that of another label: %s',
            len(alone),
            one_line(', '.join(alone)),
        )
    return found


def names_tell_nothing(label_names: Sequence[str]) -> bool:
    """Whether a label is but a number, as in '7' and 'class_7', so that none knows what it means."""
    return any(
        re.search(r'\d', name) and _NUMBERED.issuperset(re.findall(r'[^\W\d_]+', _plain(name)))
        for name in label_names
    )


def _is_direction(word: str) -> bool:
    """Whether a word, as `_words` gives it, means a direction all by itself."""
    if word in _NO_DIRECTION:
        return False
    english = word.startswith(('left', 'right'))
    english |= word.endswith(('left', 'right', 'clockwise', 'cw'))
    return english or word in _WORDS or word in ('l', 'r') or word.startswith(_STEMS)


def _marked(name: str, key: tuple[str, ...], names: dict[tuple[str, ...], list[str]]) -> bool:
    """Whether a label names a direction by a sign, another script, a capital or its neighbours.

    `names` has the labels of each tuple of words.
    """
    text = _plain(name)
    if _SIGNS.search(name) or any(_plain(stem) in text for stem in _OTHER_SCRIPTS):
        return True
    if len(key) > 1 and re.search(r'(?<![^\W_])([EW]|[NS]E)(?![^\W_])', name):
        return True
    if len({''.join(_LONE_SIGNS.findall(other)) for other in names[key]}) > 1:
        return True  # but for its signs it is another one: swipe+, swipe-
    for i, word in enumerate(key):
        swapped = word.translate(_L_OR_R)
        pairs = [pair for pair in _PAIRS if word in pair]
        if not word.endswith('ing'):  # locking, rocking
            pairs.append({swapped[:1] + word[1:], word[:-1] + swapped[-1:]})
        if any((*key[:i], x, *key[i + 1 :]) in names for x in set().union(*pairs) - {word}):
            return True
    return False


def _words(name: str) -> tuple[str, ...]:
    """Lower-case words of a label, also of one in camel case, without accents; anticlockwise, CW and
    the like are two of them, and what is cut short before an apostrophe is none."""
    name = re.sub('(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])', ' ', name)
    name = re.sub(r"\bo(['’]|[\W_]+)?clock", 'oclock', _plain(name))
    name = re.sub(r"\b[^\W\d_]['’](?=[^\W\d_])", '', name)
    name = re.sub(r'clock[\W_]+wise', 'clockwise', name)
    name = re.sub(r'(contra|counter|anti)[\W_]*clockwise', 'counterclockwise', name)
    words = re.findall(r'[^\W\d_]+|\d+', name)
    short = {'cw': 'clockwise', 'ccw': 'counterclockwise', 'acw': 'counterclockwise'}
    return tuple(short.get(word, word) for word in words)


def _plain(text: str) -> str:
    """Lower case, without the accents of Latin, Greek and Cyrillic letters."""
    text = unicodedata.normalize('NFKD', text)
    return unicodedata.normalize('NFC', re.sub('[\u0300-\u036f]', '', text)).casefold()
