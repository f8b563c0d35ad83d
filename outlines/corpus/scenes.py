"""The lexicon of the embedded corpus: twelve types of everyday scene, with people, actions, things and places.

`scene_rules` expands the tables below into rules for `outlines.corpus.grammar.Grammar`. Agreement is resolved here:
subject and verb, possessives, the things of several people, a or an, inflected forms.

A frame describes an action, for example "*throw a:STICK for own:DOG AT". A star marks a verb to inflect; AT and ALONG
are the scene's own places and ways; POSS is his, her, its or their; THINGS are written as

    n:BALL     red ball            a:BALL     a red ball   s:BALL  red balls
    some:BALL  three red balls     each:BALL  a red ball; for a plural subject, red balls
    own:BALL   her red ball; for a plural subject, their red balls

Everything else is the notation of `Grammar`. A test checks that scenes share no sentence and that every sentence has
one derivation.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Cast(NamedTuple):
    """Subjects of the same frames. Nouns are grouped by the pronoun that agrees with them."""

    frames: str
    adjectives: str
    he: str = ""
    she: str = ""
    they: str = ""
    it: str = ""
    pairs: str = ""  # coordinated subjects, plural
    weight: float = 1.0  # relative to the scene's other casts
    looks: str = ""  # clothes and things carried, instead of the scene's
    plural: bool = True  # whether a plural subject is allowed


class Scene(NamedTuple):
    at: str  # places
    times: str
    looks: str  # clothes and things carried
    casts: tuple[Cast, ...]
    asides: tuple[Cast, ...]  # subjects and frames of clauses with "while ..."
    along: str = ""  # ways of a movement


def scene_rules(types: Sequence[str]) -> dict[str, str]:
    """Return the rules of these types of scene, each equally likely. The start rule is "S"."""
    rules = {"S": _any(f"S.{name}" for name in types), **SHARED, **_thing_rules()}
    for name in types:
        scene = SCENES[name]
        for rule, text in (("AT", scene.at), ("ALONG", scene.along), ("TIME", scene.times)):
            rules[f"{rule}.{name}"] = _expand(text, name, "they", "all")
        for i, cast in enumerate(scene.casts):
            rules |= _sentence_rules(cast, name, f"{name}.{i}")
        for i, cast in enumerate(scene.asides):
            rules |= _aside_rules(cast, name, f"{name}.aside.{i}")
        rules[f"S.{name}"] = _any(f"{cast.weight}: S.{name}.{i}" for i, cast in enumerate(scene.casts))
        for tense in ("NOW", "PAST"):
            aside = _any(f"{tense}.{name}.aside.{i}" for i in range(len(scene.asides)))
            rules[f"ASIDE.{tense}.{name}"] = aside
            rules[f"AND.{tense}.{name}"] = f"6: | 2: TIME.{name} | 2: while/as ASIDE.{tense}.{name}"
    return rules


def inflect(verb: str, form: str) -> str:
    """Return a verb's "ing", "past", "one" (she throws) or "all" (they throw) form."""
    doubled = verb + verb[-1] if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", verb) else verb  # sit: sitting
    if form == "ing":
        return re.sub(r"(?<=[^eoy])e$", "", re.sub(r"ie$", "y", doubled)) + "ing"
    if form == "past":
        return _PAST.get(verb) or re.sub(r"(?<![aeiou])y$", "i", re.sub(r"e$", "", doubled)) + "ed"
    return _with_s(verb) if form == "one" else verb


def pluralize(noun: str) -> str:
    """Return the plural of a noun; of "crate_of_oranges", the word before "of" is inflected."""
    head, of, rest = noun.partition("_of_")
    *before, last = re.split(r"(?<=[_-])", head)
    plural = _PLURAL.get(last) or (last[:-3] + "men" if last.endswith("man") else _with_s(last))
    return "".join(before) + plural + of + rest


def indefinite(phrase: str) -> str:
    """Return a phrase with "a" or "an", chosen by the sound of its first word."""
    vowel = re.match(r"[aeiou]|hour", phrase) and not re.match(r"uni|uku|use|eu|one", phrase)
    return f"{'an' if vowel else 'a'}_{phrase}"


def _with_s(word: str) -> str:
    if re.search(r"(s|sh|ch|x|z)$", word):
        return word + "es"
    return re.sub(r"(?<![aeiou])y$", "ie", word) + "s"


def _any(alternatives: Iterable[str]) -> str:
    return " | ".join(alternatives)


def _expand(frame: str, scene: str, who: str, form: str) -> str:
    """Return a frame in the notation of Grammar, with verbs in `form` and things that agree with the subject."""
    owner, each = _POSSESSIVES[who], "S" if who == "all" else "A"
    own = f"{owner} {'S' if who == 'all' else 'N'}"
    determiners = {"n": "N", "a": "A", "s": "S", "some": "COUNT S", "each": each, "own": own}

    def expand(token: str) -> str:
        determiner, colon, thing = token.partition(":")
        if token.startswith("*"):
            verbs = token[1:].split("/")
            if who == "all" and form == "past":  # "they cut" reads as present tense
                verbs = [verb for verb in verbs if inflect(verb, "past") != verb] or verbs
            return "/".join(inflect(verb, form) for verb in verbs)
        if colon and thing:
            return f"{determiners[determiner]}.{thing}"
        return f"{token}.{scene}" if token in ("AT", "ALONG") else owner if token == "POSS" else token

    return " ".join(map(expand, frame.split()))


def _thing_rules() -> dict[str, str]:
    rules = {}
    for line in filter(None, THINGS.replace("COLORS", COLORS).splitlines()):
        (name, *adjectives), nouns = map(str.split, line.split(":"))
        rules[f"ADJ.{name}"], rules[f"A.ADJ.{name}"] = _any(adjectives), _any(map(indefinite, adjectives))
        rules[f"ONE.{name}"], rules[f"A.ONE.{name}"] = _any(nouns), _any(map(indefinite, nouns))
        rules[f"ALL.{name}"] = _any(map(pluralize, nouns))
        rules[f"N.{name}"] = f"2: ADJ.{name} ONE.{name} | ONE.{name}"
        rules[f"S.{name}"] = f"2: ADJ.{name} ALL.{name} | ALL.{name}"
        rules[f"A.{name}"] = f"2: A.ADJ.{name} ONE.{name} | A.ONE.{name}"
    return rules


def _subjects(cast: Cast) -> dict[str, list[str]]:
    """Return the cast's nouns by `who`: a pronoun, or "all" for their plurals."""
    nouns = {who: getattr(cast, who).split() for who in ("he", "she", "they", "it")}
    if cast.plural:
        nouns["all"] = [pluralize(noun) for group in nouns.values() for noun in group]
    return {who: group for who, group in nouns.items() if group}


def _clause_rules(cast: Cast, scene: str, name: str, who: str, looks: str) -> dict[str, str]:
    """Return NEW (a new subject), SUBJECT (any), the actions ING, DO and ED, and HERE (ING without its place)."""
    frames, nouns, adjectives = cast.frames.split("|"), _subjects(cast)[who], cast.adjectives.split()
    now = "all" if who == "all" else "one"
    do, ing, ed = ([_expand(frame, scene, who, form) for frame in frames] for form in (now, "ing", "past"))
    here = [frame.removesuffix(f" AT.{scene}") for frame in ing if frame.endswith(f" AT.{scene}")]
    rules = {f"NOUN.{name}": _any(nouns), f"ADJ.{name}": _any(adjectives)}
    rules |= {f"A.NOUN.{name}": _any(map(indefinite, nouns)), f"A.ADJ.{name}": _any(map(indefinite, adjectives))}
    if who == "all":
        rules[f"ANY.{name}"] = f"COUNT ADJ.{name}? NOUN.{name}"
    else:
        rules[f"ANY.{name}"] = f"A.NOUN.{name} | 2: A.ADJ.{name} NOUN.{name}"
    look = [_expand(item, scene, who, "") for item in looks.split("|") if item]
    # "wearing" only before a finite verb: "a man wearing a hat riding a bike" is hard to read.
    worn = [re.sub(r"^in ", "in/wearing ", item) for item in look]
    rules[f"LOOK.{name}"] = _any(["2:", *look] if look else [""])
    rules[f"WORN.{name}"] = _any(["2:", *worn] if look else [""])
    rules[f"NEW.{name}"] = f"ANY.{name} LOOK.{name}"
    pairs = f" | {cast.pairs}" if who == "all" and cast.pairs else ""
    rules[f"SUBJECT.{name}"] = f"12: ANY.{name} WORN.{name} | 2: the ADJ.{name}? NOUN.{name}{pairs}"
    # "They read" can be present or past, so the past omits forms that equal the present.
    rules |= {f"DO.{name}": _any(do), f"ING.{name}": _any(ing), f"ED.{name}": _any(x for x in ed if x not in do)}
    return rules | ({f"HERE.{name}": _any(here)} if here else {})


def _sentence_rules(cast: Cast, scene: str, name: str) -> dict[str, str]:
    """Return S.name, all sentences about one of the cast, and the rules below it."""
    rules: dict[str, str] = {}
    looks = "" if cast.it else cast.looks or SCENES[scene].looks
    for who in _subjects(cast):
        sub = f"{name}.{who}"
        rules |= _clause_rules(cast, scene, sub, who, looks)
        be, was = ("are", "were") if who == "all" else ("is", "was")
        ing, do, ed, subject = f"ING.{sub}", f"DO.{sub}", f"ED.{sub}", f"SUBJECT.{sub}"
        now, past = f"AND.NOW.{scene}", f"AND.PAST.{scene}"
        rules[f"TELLS.{sub}"] = f"4: {be} {ing} {now} | 4: {do} {now} | 3: {ed} {past} | {was} {ing} {past}"
        rules[f"THEN.{sub}"] = f"4: {be} {ing} | 4: {do} | 3: {ed} | {was} {ing}"
        rules[f"S.{sub}"] = (
            f"8: {subject} TELLS.{sub} . | 5: NEW.{sub} {ing} {now} . | there {be} NEW.{sub} {ing} ."
            f"| 2: TIME.{scene} , {subject} THEN.{sub} ."
        ) + (f" | AT.{scene} , {subject} {be} HERE.{sub} ." if f"HERE.{sub}" in rules else "")
    return rules | {f"S.{name}": _by_number(cast, f"S.{name}")}


def _aside_rules(cast: Cast, scene: str, name: str) -> dict[str, str]:
    """Return NOW.name and PAST.name, clauses about one of the cast in the present and in the past."""
    rules: dict[str, str] = {}
    for who in _subjects(cast):
        sub = f"{name}.{who}"
        rules |= _clause_rules(cast, scene, sub, who, looks="")
        be, was = ("are", "were") if who == "all" else ("is", "was")
        rules[f"NOW.{sub}"] = f"SUBJECT.{sub} {be} ING.{sub} | SUBJECT.{sub} DO.{sub}"
        rules[f"PAST.{sub}"] = f"SUBJECT.{sub} {was} ING.{sub} | SUBJECT.{sub} ED.{sub}"
    return rules | {f"{tense}.{name}": _by_number(cast, f"{tense}.{name}") for tense in ("NOW", "PAST")}


def _by_number(cast: Cast, rule: str) -> str:
    """Return alternatives for each kind of subject, weighted by its number of nouns; half are plural."""
    return _any(f"{len(nouns)}: {rule}.{who}" for who, nouns in _subjects(cast).items())


_POSSESSIVES = {"he": "his", "she": "her", "they": "their", "it": "its", "all": "their"}
_PAST = {
    "beat": "beat", "bend": "bent", "blow": "blew", "break": "broke", "bring": "brought", "build": "built",
    "buy": "bought", "cast": "cast", "catch": "caught", "choose": "chose", "cut": "cut", "dig": "dug",
    "draw": "drew", "drink": "drank", "drive": "drove", "eat": "ate", "fall": "fell", "feed": "fed",
    "fight": "fought", "find": "found", "fly": "flew", "get": "got", "give": "gave", "hang": "hung",
    "hide": "hid", "hold": "held", "keep": "kept", "lay": "laid", "lead": "led", "leave": "left", "lend": "lent",
    "lie": "lay", "light": "lit", "lose": "lost", "make": "made", "pay": "paid", "put": "put", "read": "read",
    "ride": "rode", "run": "ran", "sell": "sold", "set": "set", "shake": "shook", "sing": "sang", "sit": "sat",
    "sleep": "slept", "slide": "slid", "spell": "spelled", "spin": "spun", "stand": "stood", "steal": "stole",
    "sweep": "swept", "swim": "swam", "swing": "swung", "take": "took", "teach": "taught", "tell": "told",
    "throw": "threw", "win": "won", "write": "wrote",
}  # fmt: skip
_PLURAL = {
    "calf": "calves", "child": "children", "fish": "fish", "goose": "geese", "knife": "knives",
    "mango": "mangoes", "potato": "potatoes", "scarf": "scarves", "shelf": "shelves", "starfish": "starfish",
    "tomato": "tomatoes", "trout": "trout",
}  # fmt: skip

COLORS = "red blue green yellow orange white black gray purple pink brown beige turquoise"

SHARED = {
    "COUNT": "3: two | 2: three | four | five | some | several | a few | many",
    "HAPPILY": "happily | cheerfully | playfully | eagerly",
    "CAREFULLY": "carefully | slowly | patiently | skillfully",
    "QUIETLY": "quietly | calmly | peacefully",
    "SLOWLY": "slowly | quickly | steadily",
    "OUTDOORS": """on a sunny/warm/windy/cloudy/bright/quiet/hot/rainy/foggy/mild morning/afternoon/day/evening
        | early in the morning | late in the afternoon | at sunset/sunrise/noon/dawn/dusk
        | in the soft/warm/golden/fading evening/morning light/sun | before/after the rain/storm
        | in early/late spring/summer/autumn | under a clear/gray/cloudless/dark/pale/blue sky""",
    "INDOORS": """in the evening/morning/afternoon | before/after lunch/dinner/breakfast | late at night
        | on a rainy/quiet/cold/gray/busy/stormy/lazy morning/afternoon/evening | early in the day""",
}

# A name, adjectives that suit all of its nouns, and the nouns. No noun starts with an adjective of its own line
# ("sun hat"), because the phrase would have two derivations.
THINGS = """
COAT COLORS long warm thick old : coat jacket raincoat hoodie vest cardigan
SHIRT COLORS striped checked plain cotton faded : shirt t-shirt sweater pullover sweatshirt
TROUSERS COLORS tight baggy torn : jeans shorts trousers pants
HAT COLORS soft felt old : hat cap bandana headband
SUNHAT COLORS wide floppy : sun_hat straw_hat bucket_hat

APRON COLORS clean dirty striped checked linen : apron chef's_hat
SUIT COLORS dark elegant : suit blazer waistcoat
JERSEY COLORS clean muddy striped : jersey uniform tracksuit bib
SHORTS COLORS baggy muddy : shorts socks shoes
SCARF COLORS woolen knitted thick : scarf winter_coat parka sweater
GLOVES thick warm COLORS : gloves boots mittens
BAG COLORS heavy small leather canvas : backpack shoulder_bag satchel
UMBRELLA COLORS big broken : umbrella
SHOPPING heavy full small plastic paper : shopping_bag basket grocery_bag
SWIMSUIT COLORS striped dotted : swimsuit wetsuit
TRUNKS COLORS striped : swim_trunks shorts
OVERALLS COLORS old dirty torn greasy : overalls coveralls
BOOTS COLORS muddy old : boots work_gloves

DOG big small brown black white fluffy old shaggy spotted : dog puppy terrier poodle spaniel labrador
BALL COLORS big small rubber striped : ball beach_ball
STICK long short heavy dry crooked : stick branch twig
DUCK white brown hungry noisy wild fat : duck swan goose
BIRD small gray noisy fat colorful : bird pigeon sparrow robin
SQUIRREL red gray small quick shy : squirrel rabbit chipmunk
SCOOTER COLORS small new : scooter tricycle skateboard
BOOK thick old new interesting thin worn : book novel newspaper magazine comic_book guidebook
STROLLER COLORS double : stroller pram
BIKE COLORS old rusty new shiny : bike bicycle
KITE COLORS big colorful homemade : kite
TREE tall old big leafy : tree oak_tree maple_tree
BENCH wooden stone green old empty wet broken : bench
SNACK big small warm fresh sweet soft : sandwich pretzel pastry bagel doughnut waffle banana
PHOTO quick funny old : photo picture
PATH narrow winding gravel leafy shady muddy quiet : path trail lane
TOY COLORS wooden plastic broken : toy_boat toy_car toy_train
HOLE deep big small : hole
TAIL long bushy short fluffy : tail
HEDGE tall green thorny : hedge bush
INSTRUMENT old small battered brown shiny : violin guitar accordion trumpet flute banjo

RAG COLORS clean wet : towel cloth
KITCHEN small bright busy tiny sunny cozy modern messy dark : kitchen
RESTAURANT busy fancy old famous cheap small : restaurant diner bistro hotel
POT big small steaming heavy copper black : pot kettle saucepan
PAN hot black big heavy deep : pan skillet wok
SPOON big wooden silver : spoon ladle
BOWL big small blue glass wooden deep white : bowl dish
KNIFE sharp long small dull : knife cleaver
JAR small big sticky : jar bottle
SOUP hot thick spicy fresh creamy : soup stew chili tomato_sauce porridge gravy curry broth
DOUGH soft sticky fresh : dough
VEGETABLE fresh ripe large small crisp : carrot onion potato tomato mushroom pepper cucumber leek radish zucchini eggplant
CAKE big small birthday apple lemon cherry warm : cake pie tart cheesecake
BATTER smooth thick lumpy : batter
DRINK cold fresh : milk lemonade orange_juice apple_juice water
HOTDRINK hot strong sweet steaming : coffee tea cocoa
CUP big small white blue chipped : cup mug glass
EGG brown white fresh large : egg
PLATE big white blue clean chipped round : plate dish platter
TOPPING fresh sweet : strawberries whipped_cream icing blueberries raspberries walnuts
MEAT raw tender lean salted : chicken ham fish beef pork lamb
COOKIE warm big round chocolate small fresh : cookie muffin pancake biscuit brownie
CREAM fresh warm : milk cream

STREET narrow busy quiet cobbled crowded rainy steep : street alley avenue road
CAR COLORS old shiny muddy new : car van jeep
SHOP small busy old fancy crowded new famous : bakery cafe bookstore bank pharmacy barbershop museum hotel theater
BUS red green late crowded yellow : bus tram
PHONE new old cracked : phone
BOX heavy big cardboard small brown : box crate parcel
CART wooden heavy rusty : cart wheelbarrow
SUITCASE heavy big old black : suitcase
BUGGY COLORS heavy : cart trolley
STREETFOOD warm cheap delicious spicy fresh : kebabs popcorn tacos noodles dumplings pizza
LETTER COLORS old small : letter postcard parcel
NOSE cold small red : nose
DRIVER rude angry young careless : driver cyclist pedestrian
BALLOON COLORS big : balloon

BEACH sandy quiet crowded rocky sunny windy empty : beach
SANDCASTLE tall small huge crooked : sandcastle
SHELL small white smooth pretty pink round : shell pebble starfish
WAVE big small huge gentle high breaking : wave
SURFBOARD COLORS long new : surfboard paddle_board
TOWEL COLORS striped big : towel beach_mat
HAIR wet long curly : hair
NET long heavy torn : net fishing_net
CRAB small red tiny : crab
BUCKET red blue yellow green plastic small metal : bucket pail
BOAT COLORS old small wooden leaky : rowboat sailboat fishing_boat
PARASOL COLORS striped big : parasol beach_umbrella
JUICE cold sweet icy : lemonade iced_tea juice coconut_water
GULL white noisy fat : seagull crab

PITCH muddy wet green dry frozen : field pitch
STADIUM crowded big full modern new empty : stadium arena
CROWD big noisy small cheering excited silent : crowd
MATCH close big final friendly long important exciting : match game
RACE long hard final short fast : race marathon relay
FOOTBALL white muddy wet new old : soccer_ball football rugby_ball
TENNISBALL yellow fast high new : tennis_ball
FLAG COLORS big : flag banner scarf
BASKETBALL orange heavy new old : basketball volleyball
GOAL late quick beautiful brilliant lucky second : goal penalty
BAT heavy wooden new long : bat racket
TROPHY gold silver big shiny huge : trophy medal cup
RIVAL young tall tired fast strong injured : teammate rival opponent player
SHOE COLORS muddy old : shoe sneaker
WHISTLE silver loud : whistle
LEG long tired sore : leg

BOARD long heavy thick rough wooden narrow smooth : board plank beam shelf
TABLE small round old wooden low : table chair cabinet stool desk bookcase
MACHINE old broken rusty heavy noisy : engine motorcycle lawnmower bicycle pump tractor
CLOCK old broken tiny antique silver : clock radio watch camera
TOOL old heavy rusty small : chisel hammer screwdriver saw wrench
WRENCH big heavy rusty small : wrench spanner
BLADE old dull heavy rusty long : chisel ax knife saw
BOLT loose rusty big small long : bolt screw nut
RULER long metal folding yellow : ruler tape_measure
TOOLBOX small big heavy metal red : toolbox box_of_nails can_of_paint
POTTERY tall small round blue : vase pot bowl jug teapot
GARAGE dark small dusty cluttered bright old cold : garage workshop shed studio
WORKBENCH wooden long dusty messy heavy : workbench
FIGURE small tiny beautiful simple : bird bear horse owl boat spoon
PIPE long rusty bent : pipe rod

GUITAR COLORS old electric shiny : guitar bass
STRINGS old small beautiful brown : violin cello banjo ukulele harp
DRUM big small : drum
WINDS shiny silver old golden : trumpet saxophone flute clarinet trombone oboe
KEYS old black white : piano keyboard
SONG sad slow old popular happy new short famous gentle quiet : song ballad tune melody lullaby waltz
MICROPHONE silver old black : microphone
DANCE slow fast lively traditional wild graceful : waltz tango folk_dance polka
STAGE small big dark bright wooden empty round : stage
HALL crowded small grand dark full old famous : concert_hall club theater church
CHOIR small large young famous local : choir orchestra band

CLASSROOM bright quiet noisy small crowded sunny empty warm : classroom
BLACKBOARD big green clean dusty : blackboard whiteboard
LESSON long short difficult boring quiet : math_lesson history_lesson spelling_test science_class art_class
STORY long funny old short sad exciting strange : story poem fairy_tale letter
WORD long new difficult short strange : word sentence name question
PICTURE colorful big funny strange beautiful : picture map poster painting
PENCIL COLORS sharp short : pencil crayon
ANIMAL big funny purple tiny strange green : elephant dinosaur horse rocket castle dragon giraffe robot
PAPER colored thick : paper cardboard
NOTEBOOK COLORS new thick old : notebook textbook
TOWER tall crooked colorful high : tower
TEST difficult long easy : test exam essay
PUZZLE difficult easy clever old : puzzle riddle math_problem
EXPERIMENT simple messy dangerous clever : experiment
HAND left right : hand
PUPIL young shy quiet clever bored : pupil student
CLASSMATE young shy quiet : classmate friend

FARM small old quiet muddy remote : farm ranch
COW brown spotted black big : cow
HEN fat brown white hungry : hen chicken goose
HORSE brown white gray old young gentle : horse pony
TRACTOR COLORS old rusty big : tractor
PIG fat muddy pink : pig piglet
FRUIT ripe red sweet small fresh : apple pear cherry plum fig
CROP large fresh heavy : pumpkin cabbage potato turnip beet
HAY dry fresh golden loose : hay straw
FENCE broken wooden old long : fence gate
MEADOW green wide sunny : meadow pasture field
LAMB small white hungry newborn gentle black : lamb goat calf foal
MILK fresh warm creamy : milk
FEED dry fresh : corn grain
TRUCK COLORS old rusty : truck trailer

SLOPE steep snowy icy high : slope hill mountain
WOOLHAT COLORS thick : woolly_hat
SHAWL COLORS woolen long : scarf shawl
SNOWMAN tall fat funny small crooked : snowman
ICE thick hard : ice frost
SNOW fresh deep wet heavy powdery soft : snow
SLED COLORS wooden old : sled toboggan
SNOWBALL big small hard : snowball
LAKE frozen small icy : lake pond
SKI COLORS long new : skis snowshoes
HUSKY gray white strong : husky sled_dog
CABIN small wooden old cozy lonely : cabin cottage lodge
COCOA hot sweet : cocoa tea soup

TENT COLORS small big : tent
FIRE small big crackling : fire campfire
CANOE COLORS wooden old : canoe kayak
RIVER wide slow winding calm shallow cold : river stream
BERRY ripe wild red : berry mushroom
FISH big small silver : fish trout
ROPE long thick old : rope
FOREST dark dense quiet misty green old pine : forest
ROCK big mossy flat steep high : rock boulder cliff
ROD long new bent : fishing_rod
HILL rocky green grassy wooded : hill ridge slope
MAP old torn folded : map compass
LOG fallen long mossy : log tree_trunk
DEER young brown shy red : stag fox owl hare woodpecker
DAM small tall crooked : dam bridge hut

STALL crowded colorful small busy corner : stall stand
PRODUCE fresh ripe cheap sweet large : orange lemon peach melon tomato mango avocado pineapple
FLOWER fresh white yellow pink red : tulip rose sunflower lily daisy
BREAD fresh warm crusty dark : bread
COIN shiny small : coin
CHEESE soft old smoked fresh salty : cheese sausage
FISHES fresh silver smoked : fish shrimp
HONEY sweet fresh : honey jam
CLOTH colorful silk cotton patterned long : scarf dress carpet blanket
FRIEND old good happy : friend neighbor
FAN young happy loyal : fan admirer
PENSIONER old tired kind : lady gentleman pensioner
CUSTOMER young old regular friendly kind : customer neighbor tourist
CRATE heavy wooden full : crate_of_oranges basket_of_apples sack_of_potatoes bag_of_nuts
"""

MEN, WOMEN = "man bearded_man gentleman", "woman lady"
GROWN = "young old tall short smiling elderly tired blond slim cheerful gray-haired friendly thoughtful busy quiet"
YOUNG = "young little small smiling curly-haired freckled cheerful blond laughing shy excited curious quiet tired"
PAIRS = """a man and a woman | two old friends | a young couple | an old couple | two neighbors | a woman and her friend
    | a father and his son/daughter | a mother and her son/daughter | a man and his brother"""
SIBLINGS = "a boy and a girl | a boy and his sister | a girl and her brother | two sisters/brothers/cousins"

SCENES: dict[str, Scene] = {
    "park": Scene(
        at="""3: near/by/behind/beside the playground/statue/boathouse/bandstand/kiosk/gate
            | near/by/beside the pond/lake/fountain | in the park/shade/sunshine | on the grass/lawn
            | in a quiet/sunny/leafy/shady/peaceful corner""",
        along="""2: along/down a:PATH | through the park/trees/flowers/leaves
            | across the grass/lawn/bridge/playground | around/past the pond/fountain/lake/statue/bandstand""",
        times="OUTDOORS",
        looks="in each:COAT | in each:SHIRT | with each:BAG | in n:TROUSERS | in each:HAT",
        casts=(
            Cast("""*walk some:DOG ALONG | *walk own:DOG ALONG | SLOWLY? *push a:STROLLER ALONG
                | *jog/stroll/wander ALONG | *feed some:DUCK AT | *throw/toss a:STICK for a:DOG AT
                | *ride each:BIKE ALONG | *fly/repair/launch a:KITE AT | *sit on a:BENCH AT
                | QUIETLY? *read each:BOOK on a:BENCH | *sit on a:BENCH and *read each:BOOK
                | *eat/enjoy each:SNACK AT | *play chess/cards/frisbee AT | *take a:PHOTO of some:DUCK AT
                | *enjoy a picnic AT | *rest under a:TREE | *lean against a:TREE and *talk on the phone
                | *watch/film/photograph some:BIRD AT | *share a:SNACK with a:DOG | *trim a:HEDGE AT
                | *paint/sketch a:TREE AT | *call own:DOG AT | *play each:INSTRUMENT AT""",
                GROWN, he=f"{MEN} student", she=f"{WOMEN} nanny", they="gardener tourist jogger", pairs=PAIRS, weight=3,
            ),
            Cast("""HAPPILY? *chase some:BIRD ALONG | *climb a:TREE | *play on the swings/slide/seesaw
                | *kick/throw/bounce a:BALL AT | *ride each:SCOOTER ALONG | *eat/enjoy each:SNACK AT
                | *blow bubbles AT | *fly/repair/launch a:KITE AT | *roll down a grassy hill | *feed some:DUCK AT
                | *push a:TOY ALONG | *run after a:DOG | HAPPILY? *play hide-and-seek/tag AT
                | *hold own:BALL and *laugh | *throw s:STICK into the pond | *pet/hug/feed a:DOG AT
                | *point at a:SQUIRREL in a:TREE | *hide behind a:HEDGE AT | *kick a:BALL over a:HEDGE
                | *jump over a:BENCH""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS, weight=3,
            ),
            Cast("""*chase a:BALL ALONG | *run/race/dash/rush ALONG | *catch a:BALL AT | *carry a:STICK ALONG
                | *sleep under a:TREE | *dig a:HOLE AT | *drink from the fountain | *bark at a:SQUIRREL AT
                | *wag own:TAIL AT | *chase own:TAIL AT | *sniff at a:HEDGE | *jump over a:BENCH
                | *shake POSS wet fur AT | *chew a:STICK AT | *follow a:DUCK ALONG""",
                "small big brown black white fluffy old shaggy spotted", it="dog puppy terrier poodle spaniel labrador",
                weight=1.5,
            ),
        ),
        asides=(
            Cast("*watch | *sleep nearby | *run past | *bark at a:BIRD | *wait for a:STICK | *chase a:SQUIRREL",
                "small brown fluffy shaggy", it="dog puppy spaniel",
            ),
            Cast("""*play nearby | *laugh | *talk on a:BENCH | *walk/stroll/hurry past
                | *look at the flowers | *read each:BOOK""",
                "young smiling tall", he="man boy", she="woman girl", they="stranger",
            ),
            Cast("*swim in the pond | *wait for crumbs | *search for food | *fly away",
                "gray hungry noisy", it="duck pigeon swan",
            ),
        ),
    ),
    "kitchen": Scene(
        at="""2: in a:KITCHEN | at the counter/stove/table/sink
            | 2: near/beside the oven/fridge/cupboard/dishwasher/sink/stove | in the kitchen of a:RESTAURANT""",
        times="INDOORS",
        looks="in each:APRON | in each:SHIRT | in white gloves | in n:TROUSERS",
        casts=(
            Cast("""CAREFULLY? *stir a:POT of n:SOUP AT | CAREFULLY? *chop/slice/peel s:VEGETABLE AT
                | *bake/cut/serve/taste/frost a:CAKE AT | *knead n:DOUGH AT | *roll out n:DOUGH AT
                | *wash/rinse/scrub some:PLATE AT | *dry s:PLATE with a:RAG | *taste n:SOUP from a:SPOON
                | *pour n:HOTDRINK into each:CUP | *fry some:EGG in a:PAN | *whisk n:BATTER in a:BOWL
                | CAREFULLY? *decorate a:CAKE with n:TOPPING | *take a:CAKE out of the oven
                | *grill n:MEAT in a:PAN | *cut s:VEGETABLE with each:KNIFE | *sharpen/wash/dry a:KNIFE AT
                | *stack s:PLATE AT | *season n:MEAT with salt/pepper/herbs/garlic | *serve a:BOWL of n:SOUP AT
                | *flip s:COOKIE in a:PAN | *wipe the counter with a:RAG
                | *grate some cheese over a:BOWL of n:SOUP | *open a:JAR AT | *add s:VEGETABLE to a:POT of n:SOUP
                | *mix s:EGG with n:CREAM | *drop a:PLATE AT""",
                GROWN, he=f"{MEN} waiter", she=f"{WOMEN} grandmother", they="chef cook baker", pairs=PAIRS, weight=3,
            ),
            Cast("""*crack some:EGG into a:BOWL | *lick n:BATTER from a:SPOON | *eat/enjoy each:COOKIE AT
                | *spill n:DRINK AT | *drink n:DRINK from each:CUP | *stir n:BATTER in a:BOWL
                | *press stars/hearts out of n:DOUGH | HAPPILY? *help with the dishes AT | *reach for a:COOKIE AT
                | *carry a:PLATE of s:COOKIE AT | *cover a:CAKE with n:TOPPING | *wash s:VEGETABLE AT
                | *steal a:COOKIE from a:PLATE | *eat a:BOWL of n:SOUP AT | *put a:COOKIE on a:PLATE
                | *break a:CUP AT""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS, weight=2,
            ),
            Cast("""*drink n:CREAM from a:BOWL | *sleep/nap/doze/rest AT | *steal n:MEAT from a:PLATE
                | *jump onto the counter | *sit on the counter and *stare at n:MEAT | *watch a:POT on the stove
                | *knock a:CUP off the table | *lick a:PLATE AT""",
                "small fat gray black striped lazy curious", it="cat kitten", weight=0.6,
            ),
        ),
        asides=(
            Cast("""*sleep under the table | *beg for food | *wait by the door""", "small gray old hungry", it="cat dog"),
            Cast("""*set the table | *wash s:PLATE | *read the recipe | *open a:JAR | *watch | *peel s:VEGETABLE
                | *pour n:DRINK""",
                "young tall busy", he="man boy", she="woman girl", they="cook",
            ),
            Cast("*boil on the stove | *steam | *bubble", "big small", it="kettle pot_of_soup", plural=False),
        ),
    ),
    "street": Scene(
        at="""2: near/outside/opposite a:SHOP
            | at/near the bus_stop/train_station/traffic_light/crosswalk/newsstand/town_hall
            | on the corner/sidewalk | on a:STREET""",
        along="""2: down/along a:STREET | across the street/square/road/tracks | past/toward a:SHOP
            | through the old_town/crowd/rain/traffic""",
        times="OUTDOORS | during the rush hour",
        looks="in each:COAT | with each:BAG | with each:UMBRELLA | in n:TROUSERS | in each:HAT",
        casts=(
            Cast("""*wait for a:BUS AT | *ride each:BIKE ALONG | *carry/bring/haul some:SHOPPING ALONG
                | *talk on own:PHONE AT | *look at own:PHONE AT | *walk own:DOG ALONG | *buy n:STREETFOOD AT
                | *read each:BOOK AT | *hurry ALONG | *pull a:SUITCASE ALONG | *wash/park/repair a:CAR AT
                | *look into the window of a:SHOP | *hail a taxi AT | *drink n:HOTDRINK AT | *mail a:LETTER AT
                | *get off a:BUS AT | *unload some:BOX from a:CAR | *play each:INSTRUMENT for coins AT
                | *step over a puddle AT | *open a:UMBRELLA AT | *argue with a:DRIVER AT | *push a:STROLLER ALONG""",
                GROWN, he=f"{MEN} businessman", she=f"{WOMEN} businesswoman", they="tourist student commuter",
                pairs=PAIRS, weight=3, looks="in each:COAT | with each:BAG | in each:SUIT | with each:UMBRELLA",
            ),
            Cast("""*push/pull/park a:BUGGY ALONG | *sweep the sidewalk AT | *carry/deliver some:BOX ALONG
                | CAREFULLY? *paint/repair the door of a:SHOP | *clean the windows of a:SHOP
                | *carry a ladder ALONG | *fix a broken street_lamp AT | *empty the bins AT
                | *shout at a:DRIVER AT | *load some:BOX into a:CAR""",
                "young old tall busy friendly tired cheerful strong", they="worker street_cleaner courier",
                looks="in each:COAT | in n:OVERALLS | in n:BOOTS | in each:HAT",
            ),
            Cast("""*direct the traffic AT | *stop a:CAR AT | *argue with a:DRIVER AT | *write a parking ticket AT
                | *help a:PENSIONER across the street | *ride each:HORSE ALONG | *question a:DRIVER AT
                | *stroll ALONG""",
                "young old tall strict friendly", he="policeman", she="policewoman", weight=0.6,
                looks="in uniform | in each:HAT | with each:BAG",
            ),
            Cast("""*push a:CART ALONG | *sell n:STREETFOOD AT | *hand n:STREETFOOD to a:CUSTOMER
                | *count s:COIN AT | *wait for customers AT""",
                "young old busy friendly loud", they="street_vendor cook", weight=0.6, looks="in each:APRON | in each:HAT",
            ),
            Cast("""*ride each:SCOOTER ALONG | *jump over a puddle AT | *eat/enjoy each:SNACK AT
                | *hold each:BALLOON AT | *draw on the sidewalk with chalk | *skip ALONG | *wave at a:BUS AT
                | *splash through the puddles AT | *chase a:BALL ALONG | *look for s:COIN AT
                | *press own:NOSE against the window of a:SHOP""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS, weight=1.5,
            ),
            Cast("""SLOWLY? *drive ALONG | *stop AT | *turn around AT | *wait at a red light AT
                | SLOWLY? *roll ALONG | *honk at a:DRIVER AT | *break down AT""",
                "red yellow white black old shiny dirty blue green", it="taxi bus van truck car",
            ),
        ),
        asides=(
            Cast("*drive past | *wait at the light | *turn the corner | *honk at a:DRIVER",
                "red yellow white crowded", it="taxi bus tram truck",
            ),
            Cast("""*cross the road | *walk/stroll/hurry past | *wait nearby | *watch from a window | *laugh
                | *carry a:BOX | *talk on the phone""",
                "young old tall", he="man", she="woman", they="stranger tourist",
            ),
            Cast("*hop around | *sit on a lamp_post | *fly away", "gray fat", it="pigeon sparrow"),
        ),
    ),
    "beach": Scene(
        at="""3: near/by/behind/beside the pier/rocks/lighthouse/dunes/cliffs/harbor/boardwalk/beach_bar
            | by the sea/ocean/water | on the beach/shore | on a:BEACH | in the warm/wet/white/hot/soft sand""",
        along="""along the beach/shore/pier/boardwalk | along/across a:BEACH | across the hot/wet/soft sand
            | into/toward the waves/sea/water/surf""",
        times="OUTDOORS | at low/high tide",
        looks="in each:SWIMSUIT | in each:SUNHAT | with sunglasses | in n:TRUNKS",
        casts=(
            Cast("""*carry each:SURFBOARD ALONG | *surf/ride a:WAVE | *lie on each:TOWEL AT
                | QUIETLY? *read each:BOOK AT | *play volleyball/frisbee AT
                | *swim in the cold/warm/calm/rough sea | *walk barefoot ALONG | *jog/stroll/wander ALONG
                | *put up a:PARASOL AT | *sit under a:PARASOL AT | *unroll each:TOWEL AT
                | *take a:PHOTO of a:WAVE AT | *ride each:HORSE ALONG | *drag a:BOAT ALONG
                | *dry POSS n:HAIR with a towel | *drink n:JUICE under a:PARASOL | *wax each:SURFBOARD AT
                | *look for s:SHELL AT | *walk own:DOG ALONG""",
                GROWN, he=f"{MEN} surfer", she=WOMEN, they="lifeguard swimmer tourist", pairs=PAIRS, weight=3,
            ),
            Cast("""HAPPILY? *build/decorate/photograph a:SANDCASTLE AT | *collect/count/sort s:SHELL AT
                | *dig a:HOLE AT | *run/race/dash/rush ALONG | *fill a:BUCKET with sand/water/shells
                | *jump over a:WAVE | *chase a:GULL ALONG | *throw s:SHELL into the sea | *eat/enjoy each:SNACK AT
                | *look for s:CRAB under the rocks | *splash in the waves | *decorate a:SANDCASTLE with s:SHELL
                | *bury POSS feet AT | *carry/drag/lift a:BUCKET of water ALONG | *kick/throw a:BALL AT
                | *jump on a:SANDCASTLE | *show a:CRAB to a:FRIEND""",
                f"{YOUNG} barefoot", he="boy", she="girl", they="child kid", pairs=SIBLINGS, weight=3,
            ),
            Cast("""CAREFULLY? *mend a:NET AT | *push a:BOAT ALONG | *paint/repair a:BOAT AT
                | *pull a:NET out of the water | *unload a:BUCKET of fish AT | *cast a:NET from a:BOAT
                | *row a:BOAT ALONG | *clean/sort/count s:FISH AT""",
                "old young tall tired strong patient", he="fisherman sailor", they="diver",
                looks="in n:BOOTS | in each:HAT | in each:COAT",
            ),
            Cast("""*fly over the waves | *steal a:SNACK from a:TOWEL | *fight over a:CRAB AT | *land AT
                | *stand AT | *circle above a:BOAT | *follow a:BOAT | *search for food AT""",
                "white gray hungry noisy big", it="seagull pelican", weight=0.8,
            ),
        ),
        asides=(
            Cast("*roll in | *crash on the rocks | *wash over the sand", "big gentle high", it="wave"),
            Cast("*circle above | *cry overhead | *steal a:SNACK", "white hungry noisy", it="seagull pelican"),
            Cast("""*swim nearby | *nap in the sun | *play in the waves | *watch from a:TOWEL
                | *eat/enjoy each:SNACK""",
                "young smiling tall", he="man boy", she="woman girl", they="child",
            ),
            Cast("*pass in the distance | *leave the harbor", "white small", it="sailboat ship"),
        ),
    ),
    "sport": Scene(
        at="""3: near/behind/beside the finish_line/sideline/goalpost/bench/scoreboard/fence/stands | in a:STADIUM
            | on a:PITCH | in_front_of a:CROWD | under the bright/new floodlights""",
        along="""2: across/down/over a:PITCH | around/along the track/sideline | through the rain/mud/gate
            | past a:RIVAL""",
        times="OUTDOORS | on the first/last day of the season | in the final minutes | before the break",
        looks="in each:JERSEY | in n:SHORTS | with muddy knees/hands/elbows",
        casts=(
            Cast("""*kick/chase/carry a:FOOTBALL ALONG | *head a:FOOTBALL AT | *score a:GOAL AT
                | *serve a:TENNISBALL over the net | *dribble/pass a:BASKETBALL AT | *dive for a:FOOTBALL AT
                | *celebrate a:GOAL AT | *lift/kiss/carry/raise a:TROPHY AT | *argue with the referee AT
                | *swing/drop/raise a:BAT AT | *stretch POSS s:LEG before a:MATCH | *drink water AT
                | *tackle a:RIVAL AT | *miss a penalty AT | *shake hands with a:RIVAL after a:MATCH | *limp ALONG
                | *pass a:FOOTBALL to a:RIVAL | *throw a:BASKETBALL to a:RIVAL | *hug a:RIVAL after a:MATCH
                | *catch/stop/block a:FOOTBALL AT | *practice with a:BAT AT | *smash a:TENNISBALL into the net""",
                "young tall fast strong tired injured skinny", he="sportsman boy", she="sportswoman girl",
                they="player athlete striker goalkeeper", weight=3,
            ),
            Cast("""*sprint ALONG | *jump over the last hurdle AT | *tie own:SHOE before a:RACE | *win a:RACE AT
                | *cross the line AT | *warm up before a:RACE | *fall AT | *pass a:RIVAL in a:RACE
                | *jog/stroll/wander ALONG | *rest after a:RACE | *kiss a:TROPHY AT | *lose a:SHOE in a:RACE""",
                "young tall fast lean exhausted barefoot", they="runner sprinter", he="man", she="woman", weight=1.5,
            ),
            Cast("""*cheer for POSS team AT | *wave each:FLAG AT | *eat n:STREETFOOD AT | *jump up and down AT
                | *shout at the referee AT | *sing loudly AT | *hold each:FLAG AT | *hug a:FRIEND after a:GOAL
                | *beat a:DRUM AT | *leave before the end of a:MATCH | *film a:MATCH with POSS n:PHONE""",
                "young loud happy nervous angry excited old", he="father", she="mother", they="fan supporter", pairs=PAIRS,
                weight=1.5, looks="in each:JERSEY | in each:COAT | with each:FLAG | in each:HAT",
            ),
            Cast("""*blow a:WHISTLE AT | *show a:RIVAL a yellow/red card AT | *talk/listen/point to a:RIVAL AT
                | *stop a:MATCH AT | *point at the scoreboard AT | *write in a:NOTEBOOK AT | *check POSS watch AT
                | *encourage a:RIVAL AT""",
                "strict young old calm angry patient", they="referee coach trainer", plural=False,
                looks="in each:JERSEY | in each:COAT | in each:HAT",
            ),
        ),
        asides=(
            Cast("*cheer | *watch in silence | *clap | *chant", "big noisy small", it="crowd", plural=False),
            Cast("*wait on the bench | *fall to the ground | *warm up | *protest | *rest | *ask for a:FOOTBALL",
                "young tall tired", they="teammate rival player",
            ),
            Cast("*check POSS watch | *blow a:WHISTLE | *take notes | *shout instructions",
                "strict nervous calm", they="coach referee", plural=False,
            ),
        ),
    ),
    "workshop": Scene(
        at="""2: in a:GARAGE | at/near/beside a:WORKBENCH | near/beside the window/door
            | 2: near/beside/behind the furnace/ladder/lathe/shelf/kiln | in the workshop
            | under a bare/bright/swinging lamp""",
        times="INDOORS",
        looks="in n:OVERALLS | in each:APRON | in safety_goggles | with sawdust in POSS hair | in each:SHIRT",
        casts=(
            Cast("""CAREFULLY? *saw/sand/polish a:BOARD AT | *hammer a nail into a:BOARD
                | *repair/fix/clean a:MACHINE AT | CAREFULLY? *measure a:BOARD with a:RULER
                | *drill a:HOLE in/through a:BOARD | *sharpen a:BLADE AT | *tighten/loosen a:BOLT with a:WRENCH
                | *paint/varnish/build a:TABLE AT | *glue the leg of a:TABLE | *sweep the floor AT
                | *look for a:TOOL AT | *carve a:FIGURE out of wood | *open/carry a:TOOLBOX AT
                | *take/pull a:CLOCK apart AT | *wipe the oil off a:MACHINE | *weld a:PIPE AT
                | *change the oil of a:CAR AT | *carry a:BOARD AT | *replace a:BOLT in a:MACHINE | *bend a:PIPE AT
                | *start a:MACHINE AT""",
                "young old tall skilled busy careful tired friendly", he="man bearded_man craftsman",
                she="woman craftswoman", they="carpenter mechanic apprentice welder", weight=3,
            ),
            Cast("""CAREFULLY? *shape/polish/trim a:POTTERY AT | CAREFULLY? *glaze/paint a:POTTERY AT
                | *break a:POTTERY AT | *push a:POTTERY into the kiln | *take a:POTTERY out of the kiln
                | *throw some clay on the wheel | *sell a:POTTERY to a:CUSTOMER""",
                "young old patient skilled busy", they="potter artist", he="gentleman", she="lady",
                looks="in each:APRON | in each:SHIRT | with clay on POSS hands",
            ),
            Cast("""*hold a:RULER AT | *hand a:TOOL to the mechanic | *paint a:BOARD AT | *sort s:BOLT AT
                | *sand a:TOY AT | *hammer nails into a:BOARD | *watch a:MACHINE AT | *build/paint a:TOY AT
                | *drop a:TOOLBOX AT""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS, looks="in n:OVERALLS | in each:SHIRT",
            ),
        ),
        asides=(
            Cast("*hum in the corner | *cool down | *rattle", "old noisy", it="engine machine"),
            Cast("""*hold the lamp | *look on | *wait for the paint to dry | *sweep the floor | *sort the screws
                | *hold a:BOARD | *search for a:TOOL""",
                "young smiling busy", he="man boy", she="woman girl", they="apprentice",
            ),
            Cast("*play on the radio", "old loud sad", it="song tune", plural=False),
        ),
    ),
    "music": Scene(
        at="""on a:STAGE | in a:HALL
            | 2: at a summer/jazz/folk/village/rock/charity/school/street festival/concert/party
            | near/beside/behind the curtain/loudspeaker/spotlight/stage""",
        times="INDOORS | on the last night of the tour | on the opening night",
        looks="in each:SUIT | in n:TROUSERS | in each:HAT | with long/curly/short/wild/blond hair",
        casts=(
            Cast("""*play each:GUITAR AT | *play each:STRINGS AT | *play each:WINDS AT | *play a:SONG on a:KEYS
                | *sing a:SONG into a:MICROPHONE | *tune own:GUITAR AT | *sing/perform/rehearse/hum a:SONG AT
                | *beat each:DRUM AT | *play a:SONG on each:STRINGS | *strum own:GUITAR AT
                | *practice a:SONG on each:WINDS | *bow to a:CROWD AT | *write a:SONG at a:KEYS
                | *adjust a:MICROPHONE AT | *rehearse a:SONG with a:CHOIR | *carry a:DRUM onto a:STAGE
                | *polish/drop own:GUITAR AT | *sign a:GUITAR for a:FAN | *improvise on each:WINDS AT""",
                "young old famous shy talented tall elegant blond", he="man bearded_man street_musician",
                she="woman actress", they="singer musician performer", pairs=PAIRS, weight=3,
            ),
            Cast("""*conduct a:CHOIR AT | *wave a baton AT | *turn the pages AT | *lead a:CHOIR through a:SONG
                | *thank a:CHOIR AT | *praise a:CHOIR after a:SONG""",
                "old young elegant strict famous gray-haired", they="conductor", plural=False,
                looks="in each:SUIT | with long/curly/short/white hair", weight=0.7,
            ),
            Cast("""*dance a:DANCE AT | *clap along to a:SONG | *film a:CHOIR AT | *dance to a:SONG AT
                | *spin around AT | *listen to a:SONG with closed eyes | *wave POSS arms AT
                | *sing along to a:SONG | *sway during a:SONG | *cheer for a:CHOIR AT""",
                "young old happy excited tall smiling", he="gentleman", she="lady", they="dancer fan", pairs=PAIRS,
                weight=1.5, looks="in each:COAT | in n:TROUSERS | in each:SHIRT",
            ),
            Cast("""*practice a:SONG on a:KEYS | *blow into each:WINDS AT | *sing in a:CHOIR AT
                | *shake a tambourine AT | *learn a:SONG on each:STRINGS | *hum a:SONG AT | *dance to a:SONG AT
                | *bang on a:DRUM AT""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS,
            ),
        ),
        asides=(
            Cast("""*clap | *sing along | *listen in silence | *dance | *cheer""", "big small noisy", it="crowd", plural=False),
            Cast("*turn the pages | *keep the beat | *tune a:GUITAR | *wait backstage | *hum a:SONG",
                "young old nervous", they="drummer pianist guitarist",
            ),
            Cast("*light up | *flicker | *fade", "red blue bright", it="spotlight"),
        ),
    ),
    "classroom": Scene(
        at="""2: in a:CLASSROOM | during a:LESSON | in the school library/hall/gym/garden
            | 3: near/beside the blackboard/window/door/bookshelf/globe/teacher's_desk""",
        times="""in the morning/afternoon | before/after lunch/sports | before the bell | during the first/second/last hour
            | on a rainy/quiet/cold/gray/busy/sunny/lazy morning/afternoon | on the first/last day of school""",
        looks="in each:SHIRT | in n:TROUSERS | with round/big/thick glasses | with each:BAG",
        casts=(
            Cast("""*write some:WORD on a:BLACKBOARD | *read a:STORY aloud AT | *explain a:WORD AT
                | *wipe a:BLACKBOARD AT | *point at a:PICTURE on the wall | *hand out s:NOTEBOOK AT
                | *correct s:TEST AT | *hang up a:PICTURE AT | *draw a:ANIMAL on a:BLACKBOARD
                | *help a:PUPIL with a:PUZZLE | *carry a stack of s:NOTEBOOK AT | *teach some:PUPIL a:SONG AT
                | *demonstrate a:EXPERIMENT AT | *praise a:PUPIL AT
                | *ask a:PUPIL a difficult/simple/strange/clever question AT""",
                "young old tall strict friendly patient kind", he="man gentleman", she="woman lady",
                they="teacher professor", weight=1.5,
            ),
            Cast("""*raise own:HAND AT | *draw a:ANIMAL with a:PENCIL | *write a:STORY in each:NOTEBOOK
                | *read/write/finish/copy a:STORY AT | *fold/cut n:PAPER AT | *whisper to a:CLASSMATE AT
                | *build a:TOWER of blocks/cups/books AT | *paint/draw/sketch a:ANIMAL AT
                | *sleep/nap/doze/rest AT | *count to ten AT | *watch a:EXPERIMENT AT
                | *glue/tape n:PAPER into each:NOTEBOOK | CAREFULLY? *solve a:PUZZLE AT
                | *spell a:WORD on a:BLACKBOARD | *sharpen each:PENCIL AT | *look out of the window
                | *learn a:STORY by heart AT | *hide a:NOTEBOOK under the desk | *lend a:PENCIL to a:CLASSMATE
                | *finish/start a:TEST AT | *pass a:NOTEBOOK to a:CLASSMATE""",
                "young shy small clever quiet smiling curious sleepy", he="boy schoolboy", she="girl schoolgirl",
                they="student pupil child", pairs=SIBLINGS, weight=3,
            ),
        ),
        asides=(
            Cast("""*explain a:WORD | *watch | *write on the board | *leave the room | *correct s:TEST
                | *praise a:PUPIL""",
                "young old strict patient", they="teacher", plural=False,
            ),
            Cast("""*listen | *take notes | *giggle | *look out of the window | *wait for the bell | *draw a:ANIMAL
                | *whisper""",
                "young quiet bored", he="boy", she="girl", they="student classmate",
            ),
            Cast("*tick on the wall", "old big", it="clock", plural=False),
        ),
    ),
    "farm": Scene(
        at="""4: behind/beside/near/outside the barn/stable/greenhouse/henhouse/farmhouse/windmill/cowshed
            | on a:FARM | near a:FENCE | in a:MEADOW""",
        along="""across the yard/meadow/pasture/hillside | along a:FENCE
            | past/around the barn/stable/farmhouse/windmill | through the orchard/mud/corn
            | down a dusty/muddy/bumpy/narrow/long road""",
        times="OUTDOORS | during the harvest",
        looks="in n:OVERALLS | in each:SHIRT | in each:SUNHAT | in n:BOOTS",
        casts=(
            Cast("""*milk a:COW AT | *feed some:HEN AT | *drive a:TRACTOR ALONG | *pick/gather/wash s:FRUIT AT
                | *ride each:HORSE ALONG | *lead a:HORSE ALONG | *shear a sheep AT | *stack bales of n:HAY AT
                | *repair/paint a:FENCE | *load s:CROP onto a:TRUCK | *dig up s:CROP AT
                | *carry/drag/lift a:BUCKET of n:MILK ALONG | *brush/saddle/feed/wash a:HORSE AT
                | *plant/harvest/wash/sort s:CROP AT | *push/pull a:CART of n:HAY ALONG
                | *scatter n:FEED for some:HEN | *feed a:LAMB from a bottle | *collect/count/sort s:EGG AT
                | *chase a:PIG ALONG | *wash a:TRACTOR AT | *fix a:TRUCK AT""",
                "young old tall strong tired sunburned friendly", he="man farmhand", she="woman milkmaid",
                they="farmer shepherd worker", pairs=PAIRS, weight=3,
            ),
            Cast("""*hug/stroke/brush a:LAMB AT | *pet/feed a:LAMB AT | *ride each:HORSE ALONG
                | *chase some:HEN ALONG | *climb over a:FENCE | *jump into n:HAY | *pick/gather/wash s:FRUIT AT
                | *eat/enjoy each:FRUIT AT | *collect/count/sort s:EGG AT | *hold a:LAMB AT | *sit on a:TRACTOR AT
                | *carry a:HEN ALONG | *splash through the mud AT""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS, weight=1.5,
                looks="in n:OVERALLS | in each:SHIRT | in each:SUNHAT | in n:BOOTS",
            ),
            Cast("""*graze AT | *drink from a:BUCKET AT | *sleep/nap/doze/rest AT | *eat n:HAY AT
                | *look over a:FENCE | *run/race/dash/rush ALONG | *walk ALONG | *follow the farmer ALONG
                | *swish own:TAIL AT | *lick a:LAMB AT | *pull a:CART ALONG""",
                "brown white black spotted old young", it="cow horse pony donkey bull", weight=1.5,
            ),
            Cast("""*peck at n:FEED AT | *run/race/dash/rush ALONG | *lay an egg AT | *sit on a:FENCE
                | *search for worms AT""",
                "fat brown white noisy hungry", it="hen chicken turkey", weight=0.7,
            ),
        ),
        asides=(
            Cast("*graze nearby | *look over a:FENCE | *wait for food | *drink from the trough",
                "brown white spotted", it="cow horse goat",
            ),
            Cast("*chase the hens | *bark at a:HEN | *sleep in n:HAY", "old black shaggy", it="dog sheepdog"),
            Cast("*open the gate | *drive past | *load a:TRUCK | *hold a:BUCKET | *pick/gather/wash s:FRUIT",
                "young smiling strong", he="man boy", she="woman girl", they="farmer",
            ),
        ),
    ),
    "snow": Scene(
        at="""2: outside/behind/beside a:CABIN | in the snow | on a:SLOPE | on a:LAKE
            | 2: near/beside/below the ski_lift/ski_school/mountain_hut/ice_rink/chalet/ski_jump""",
        along="""2: down/across a:SLOPE | through n:SNOW | across a:LAKE | past/toward a:CABIN
            | over the frozen/snowy/white/icy ground/field/meadow""",
        times="""on a cold/clear/freezing/frosty/snowy/bright/gray morning/afternoon/day | at dusk/dawn
            | after a heavy/long/sudden snowfall/storm | in the middle of winter
            | under a clear/gray/pale/starry sky | in the winter sun""",
        looks="in each:SCARF | in each:COAT | with rosy/red/cold cheeks | in each:WOOLHAT | in n:GLOVES",
        casts=(
            Cast("""SLOWLY? *ski ALONG | *snowboard ALONG | *shovel n:SNOW AT | *pull a:SLED ALONG
                | *skate/trudge ALONG | *hike/walk/wander ALONG | *carry POSS n:SKI ALONG | *wax POSS n:SKI AT
                | *scrape n:ICE off a:CAR | *fish through a:HOLE in the ice | *drive a snowplow ALONG
                | *drink n:COCOA AT | *chop wood AT | *ride the lift up a:SLOPE | *fall into n:SNOW
                | *take a:PHOTO of a:SNOWMAN AT | *lead some:HUSKY ALONG | *warm POSS hands over a:FIRE
                | *put on POSS n:SKI AT | *sweep n:SNOW off a:BENCH | *push a:CAR ALONG""",
                GROWN, he=f"{MEN} skier", she=WOMEN, they="snowboarder hiker skater", pairs=PAIRS, weight=3,
            ),
            Cast("""HAPPILY? *build/decorate/photograph a:SNOWMAN AT | *throw s:SNOWBALL AT | *ride each:SLED ALONG
                | *make snow angels AT | *roll a:SNOWBALL ALONG | *catch snowflakes AT | *slide ALONG
                | *push a:SLED up a:SLOPE | *run/race/dash/rush ALONG | *put a:HAT on a:SNOWMAN
                | *hide behind a:SNOWMAN | *learn to skate AT | *eat n:SNOW AT | *give a:SNOWMAN a carrot nose
                | *throw a:SNOWBALL at a:CAR | *tie a:SHAWL around a:SNOWMAN""",
                "young little small smiling rosy-cheeked laughing excited", he="boy", she="girl", they="child kid",
                pairs=SIBLINGS, weight=3,
            ),
            Cast("""*pull a:SLED ALONG | *run/race/dash/rush ALONG | *roll AT | *bark at a:SNOWMAN | *dig in n:SNOW
                | *chase a:SNOWBALL ALONG | *shake n:SNOW from POSS fur | *carry a:STICK ALONG""",
                "gray white strong young tired old", it="husky sled_dog dog",
            ),
        ),
        asides=(
            Cast("*fall | *swirl around | *melt", "white thick big", it="snowflake"),
            Cast("""*watch from a:CABIN | *cheer | *wait at the bottom | *drink n:COCOA
                | *throw s:SNOWBALL | *put on n:GLOVES""",
                "young smiling tall", he="man boy", she="woman girl", they="skier",
            ),
            Cast("*rest nearby | *howl | *run ahead | *dig in n:SNOW", "gray strong", it="husky dog"),
        ),
    ),
    "forest": Scene(
        at="""in a:FOREST | beside/near a:RIVER | by a:FIRE | near/behind a:ROCK
            | 3: near/beside/behind the campsite/waterfall/cave/lookout/footbridge/dead_oak
            | in a small/sunny/mossy/hidden/quiet clearing""",
        along="""through a:FOREST | along/toward a:RIVER | up a:HILL | over/around a:ROCK
            | between/under/past the tall/old/dark/bare trees/pines""",
        times="OUTDOORS | in the cool morning mist | by the light of the moon",
        looks="in each:COAT | with each:BAG | in each:HAT | with each:MAP | in n:BOOTS",
        casts=(
            Cast("""*pitch/pack/mend a:TENT AT | *hike/walk/wander ALONG | *gather s:STICK AT
                | *roast marshmallows/sausages/corn over a:FIRE | *paddle a:CANOE down a:RIVER
                | *carry a:CANOE ALONG | *light/watch a:FIRE AT | *cross a:RIVER on a:LOG | *study a map AT
                | *climb a:ROCK with a:ROPE | *catch a:FISH with a:ROD | *chop wood AT | *cook n:SOUP over a:FIRE
                | *tie a:ROPE to a:TREE | *sleep in a:TENT | *pick/gather/find s:BERRY AT
                | *watch/follow/photograph a:DEER through binoculars | *fill a bottle from a:RIVER
                | *sketch a:DEER AT | *sit on a:LOG AT | *saw a:LOG AT | *drink n:HOTDRINK AT""",
                GROWN, he=f"{MEN} hunter", she=WOMEN, they="hiker camper ranger", pairs=PAIRS, weight=3,
            ),
            Cast("""*pick/gather/find s:BERRY AT | *tell ghost stories AT | *skip stones across a:RIVER
                | *swing from a:ROPE | *balance on a:LOG | *collect/count/sort s:STICK AT | *look for s:BERRY AT
                | *wade across a:RIVER | *build a:DAM out of s:STICK | *hide behind a:TREE | *follow a:DEER ALONG
                | *climb a:ROCK | *carve a:FIGURE out of a:STICK | *jump over a:LOG""",
                YOUNG, he="boy", she="girl", they="child scout", pairs=SIBLINGS, weight=1.5,
            ),
            Cast("""*run/race/dash/rush ALONG | *drink from a:RIVER | *sleep/nap/doze/rest AT | *eat s:BERRY AT
                | *climb a:TREE | *hide behind a:ROCK | *dig AT | *leap over a:LOG | *look for food AT
                | *prick up POSS ears AT | *scratch at a:TREE""",
                "young brown gray shy hungry small", it="fox bear squirrel raccoon badger", weight=1.5,
            ),
        ),
        asides=(
            Cast("""*sing in the trees | *call in the distance | *fly overhead""", "small brown black", it="bird robin blackbird"),
            Cast("*rest on a:ROCK | *boil water | *look at the map | *pack a:TENT | *sleep | *gather s:STICK",
                "young smiling tired", he="man boy", she="woman girl", they="hiker",
            ),
            Cast("*watch from the bushes | *disappear into the trees", "young shy", it="stag fox hare"),
        ),
    ),
    "market": Scene(
        at="""2: at/behind/near a:STALL | in the market hall | at a farmers'/street/flea/village/harvest market
            | 2: near/beside/behind the fish/cheese/fruit/spice/flower/bread stand/counter""",
        along="through the market/crowd/hall | from stall to stall | past/toward a:STALL",
        times="OUTDOORS | on market day | just before closing time",
        looks="in each:APRON | with each:SHOPPING | in each:COAT | in each:SHIRT | in each:HAT",
        casts=(
            Cast("""*sell/sort/display s:PRODUCE AT | *weigh some:PRODUCE AT | *arrange s:FLOWER AT
                | *stack s:CRATE AT | *count s:COIN AT | *wrap n:FISHES in paper | *slice n:CHEESE AT
                | *unload s:CRATE from a:CAR | *polish s:PRODUCE AT | *shout prices AT
                | *hand a:PRODUCE to a:CUSTOMER | *unfold a:CLOTH AT | *tie a bunch of s:FLOWER
                | *offer a:CUSTOMER some n:CHEESE | *pour n:HONEY into a:JAR
                | *push/pull a:CART of s:PRODUCE ALONG | *bargain with a:CUSTOMER AT | *fold a:CLOTH AT""",
                "young old loud friendly busy tired tall", he="man salesman", she="woman saleswoman",
                they="vendor trader farmer", weight=2, looks="in each:APRON | in each:COAT | in each:SHIRT | in each:HAT",
            ),
            Cast("""*buy/pick/sniff some:PRODUCE AT | *smell/choose/buy a:FLOWER AT | *taste n:CHEESE AT
                | *haggle over a:CLOTH AT | *carry a:CRATE ALONG | *pay for a:JAR of n:HONEY
                | *choose some:PRODUCE AT | *buy n:BREAD AT | *squeeze a:PRODUCE AT | *try on a:HAT AT
                | *buy a bunch of s:FLOWER AT | *admire/touch/buy a:CLOTH AT | *look for a:COIN AT | *wander ALONG
                | *drop a:JAR of n:HONEY AT | *fill each:SHOPPING with s:PRODUCE | *compare some:PRODUCE AT""",
                GROWN, he=MEN, she=WOMEN, they="customer tourist cook", pairs=PAIRS, weight=2,
            ),
            Cast("""*eat/enjoy each:PRODUCE AT | *hold each:BALLOON AT | *pet/feed a:LAMB AT | *beg for a:COOKIE AT
                | *taste n:HONEY AT | *hide behind s:CRATE | *carry a:FLOWER ALONG | *steal a:PRODUCE AT
                | *drop a:PRODUCE AT""",
                YOUNG, he="boy", she="girl", they="child kid", pairs=SIBLINGS,
                looks="in each:SHIRT | in each:COAT | in each:HAT | in n:TROUSERS",
            ),
        ),
        asides=(
            Cast("""*wait in line | *look on | *count s:COIN | *compare the prices
                | *walk/stroll/hurry past | *taste n:CHEESE""",
                "young old tall", he="man", she="woman", they="customer",
            ),
            Cast("""*shout the price | *pack the bags | *sweep the ground | *weigh s:PRODUCE""", "busy loud", they="vendor baker"),
            Cast("*sniff at n:FISHES | *beg for scraps", "small hungry", it="dog cat"),
        ),
    ),
}
