"""The rules and lists that the Home Assistant sentences refer to, in our own words.

The published sentences name rules (``<turn>``) and lists (``{area}``) that every home fills for
itself. Here they hold many rooms and devices, so that the model learns to copy, not to remember.

Laws that keep labels free of contradictions: no device name begins with a room's name (a room
before a device is always the ``area``), and no device is called just "light" or "fan" (those are
the ``domain``).
"""

from __future__ import annotations

from edgeagent.train.templates import Value

RULES = {
    "the": "(the|the|the|my)",
    "in": "(in|in|in|inside|of)",
    "all": "(all|all of)",
    "light": "(lights|lights|light)",
    "turn": "(turn|turn|turn|switch|put)",
    "is": "(is|are)",
    "here": "(here|in here|in this room)",
    "numeric_value_set": "(set|set|change|turn|adjust)",
    "timer_remove": "(remove|take|subtract)",
    "timer_set": "(set|set|start|create|make)",
    "timer_cancel": "(cancel|stop|delete|remove)",
    "which": "(which|what)",
    "how_many": "how many",
    "are_any": "(are|is) [there] any",
    "are_all": "are all [the]",
    "lockable": "(locks|doors)",
    "set": "(set|change|make|turn)",
    "open": "(open|open|raise|pull up)",
    "close": "(close|close|lower|shut)",
    "what_is": "(what is|what's|whats)",
    "temp": "(temperature|temperature|temp)",
    "everywhere": "(everywhere|in the [whole] house)",
    "how_is": "(how is|how's)",
    "clean": "(clean|vacuum)",
    "where_is": "(where is|where's)",
    "home": "home",
}


def _words(text: str) -> list[Value]:
    """Values that are copied as they are said; separated by commas."""
    return [(word.strip(), word.strip()) for word in text.split(",")]


def _numbers(low: int, high: int, step: int = 1) -> list[Value]:
    """Numbers written in digits."""
    return [(str(n), str(n)) for n in range(low, high + 1, step)]


_UNITS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spoken(number: int) -> str:
    """Return 1 to 99 in words."""
    if number < 20:
        return _UNITS[number - 1]
    tens, unit = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[unit - 1]}" if unit else "")


def _spoken(low: int, high: int) -> list[Value]:
    """Numbers written in words, hyphenated or not."""
    said = [spoken(n) for n in range(low, high + 1)]
    return [(word, word) for word in said] + [
        (word.replace("-", " "),) * 2 for word in said if "-" in word
    ]


_COMMON_TIMES = _words("5,10,15,20,30,45,five,ten,fifteen,twenty,thirty,forty five,3,three") * 3

AREAS = _words(
    "kitchen,kitchen,kitchen,living room,living room,living room,bedroom,bedroom,bedroom,bathroom,"
    "bathroom,garage,garage,hallway,hall,office,study,dining room,guest room,guest bedroom,nursery,"
    "basement,attic,laundry room,laundry,entrance,entryway,porch,front porch,back porch,patio,deck,"
    "garden,back yard,front yard,backyard,driveway,workshop,shed,closet,walk-in closet,pantry,den,"
    "family room,play room,playroom,game room,media room,home theater,library,sunroom,conservatory,"
    "gym,home gym,studio,master bedroom,main bedroom,kids room,kid's bedroom,boys room,girls room,"
    "baby room,tom's room,emma's bedroom,anna's room,max's room,mom's office,utility room,mudroom,"
    "lounge,foyer,stairs,staircase,landing,balcony,terrace,cellar,wine cellar,music room,outside,"
    "spare room,dressing room,ensuite,shower room,toilet,powder room,storage room,boiler room,"
    "breakfast nook,bar,pool house,greenhouse,barn,cabin,loft,server room,craft room,corridor"
)

FLOORS = _words(
    "upstairs,downstairs,first floor,second floor,third floor,ground floor,top floor,main floor,"
    "lower level,upper level"
)

_LIGHT_NAMES = (
    "lamp,floor lamp,desk lamp,table lamp,bedside lamp,reading lamp,night light,nightlight,"
    "ceiling light,overhead light,chandelier,spotlight,spotlights,led strip,light strip,string "
    "lights,fairy lights,christmas lights,christmas tree,tree lights,lava lamp,pendant,pendants,"
    "sconces,wall lamp,counter lights,cabinet lights,under cabinet lights,mirror light,vanity,"
    "play corner,left lamp,right lamp,corner lamp,disco lights,mood light,string of lights,"
    "piano lamp,accent light,salt lamp,aquarium light,fish tank light,torch,reading light"
)
_SWITCH_NAMES = (
    "tv,television,coffee maker,coffee machine,kettle,toaster,dishwasher,washing machine,washer,"
    "dryer,heater,space heater,water heater,humidifier,dehumidifier,air purifier,air conditioner,"
    "ac,router,printer,computer,monitor,speaker,radio,stereo,sprinkler,sprinklers,pool pump,"
    "hot tub,towel warmer,electric blanket,oven,stove,microwave,slow cooker,rice cooker,fountain,"
    "outlet,smart plug,smart socket,socket,wall plug,power strip,charger,iron,projector,console,"
    "playstation,xbox,alarm system,doorbell,camera,security camera,main switch,freezer,"
    "aquarium pump,boiler,fireplace,heating,exhaust,range hood,wemo,plug"
)
_FAN_NAMES = "ceiling fan,desk fan,tower fan,exhaust fan,box fan,pedestal fan,big fan,left fan"
_COVER_NAMES = (
    "curtain left,curtain right,left curtain,right curtain,left blind,right blind,shade left,"
    "sliding door,roller shutter,skylight,roof window,big window,sun shade,pergola,drapes"
)
_LOCK_NAMES = (
    "front door,back door,side door,main door,cellar door,sliding doors,safe,gate lock,shed door"
)
_MEDIA_NAMES = (
    "tv,television,speaker,smart speaker,soundbar,stereo,radio,apple tv,chromecast,sonos,roku,"
    "home cinema,echo,record player,music box"
)

NAMES: dict[str, list[Value]] = {
    "light": _words(_LIGHT_NAMES),
    "switch": _words(_SWITCH_NAMES),
    "fan": _words(_FAN_NAMES),
    "cover": _words(_COVER_NAMES),
    "lock": _words(_LOCK_NAMES),
    "valve": _words("main valve,water valve,gas valve,irrigation valve,tap,radiator valve"),
    "climate": _words("thermostat,air conditioner,ac,heat pump,radiator,heater,nest"),
    "media_player": _words(_MEDIA_NAMES),
    "scene": _words("party mode,movie night,good night,romantic,dinner time,relax,bright,sunrise"),
    "script": _words("stealth mode,bedtime,wake up,morning routine,party time,leaving home,movie"),
    "sensor": _words(
        "outdoor humidity,power meter,rain sensor,humidity,air quality,wind speed,battery level,"
        "water level,energy usage,outside temperature,noise level"
    ),
    "binary_sensor": _words("patio door,pet door,back window,mailbox,motion sensor,door sensor"),
    "person": _words("anna,tom,emma,max,lily,john,mom,dad,grandma,alice,bob,sam"),
    "vacuum": _words("rover,robot,robot vacuum,roomba,vacuum cleaner,dusty,roborock"),
    "lawn_mower": _words("mowy,robomow,lawn robot,husky"),
    "weather": _words("london,paris,boston,berlin,tokyo,madrid,rome,oslo,chicago,denver"),
    "todo": _words("to do,todo,to-do,packing,wish,grocery,hardware,chores,birthday,work"),
}
NAMES["default"] = [*NAMES["light"], *NAMES["switch"], *NAMES["switch"], *NAMES["fan"]]

_ITEMS = _words(
    "milk,milk,eggs,bread,butter,cheese,apples,bananas,oranges,toilet paper,paper towels,coffee,"
    "tea,sugar,flour,rice,pasta,tomatoes,tomato sauce,potatoes,onions,garlic,chicken,ground beef,"
    "salmon,yogurt,ice cream,chocolate,cookies,cereal,orange juice,water,beer,red wine,soap,"
    "shampoo,toothpaste,dish soap,laundry detergent,dog food,cat food,cat litter,batteries,"
    "light bulbs,two avocados,a dozen eggs,peanut butter,jam,honey,olive oil,salt,pepper,carrots,"
    "lettuce,spinach,mushrooms,strawberries,lemons,grapes,frozen pizza,baby wipes,diapers,trash "
    "bags,tin foil,napkins,maple syrup,hummus,tofu,almond milk,oat milk,bacon,ham,sausages,"
    "shrimp,crackers,popcorn,candles,birthday cake,sponges"
)
_TASKS = _words(
    "call mom,wash the car,pay the bills,clean the windows,water the plants,buy a gift,fix the "
    "sink,walk the dog,book the dentist,sunscreen,passport,socks,screws,hammer,paint,do homework,"
    "send the letter,read the report,mow the lawn,toothbrush,charger,new shoes,a camera"
)
_COMMANDS = _words(
    "turn off the lights,turn off the tv,open the garage door,lock the front door,turn on the "
    "fan,turn on the heater,close the blinds,stop the music,turn off the kitchen lights"
)
_COLORS = _words(
    "red,red,green,green,blue,blue,white,yellow,orange,purple,pink,black,brown,turquoise,teal,"
    "violet,magenta,cyan,gold,lavender,lime,salmon,crimson,indigo"
)
_COVERS = [
    (said, kind)
    for kind in ("awning", "blind", "curtain", "gate", "shade", "shutter", "window")
    for said in (kind, f"{kind}s")
]
_MESSAGES = _words(
    "dinner is ready,it is time to go,the movie is starting,breakfast is ready,come downstairs,"
    "the taxi is here,i am home,bedtime in ten minutes,please be quiet,lunch is served"
)

LISTS: dict[str, list[Value]] = {
    "area": AREAS,
    "floor": FLOORS,
    "timer_hours": [*_numbers(1, 12), *_spoken(1, 12)],
    "timer_minutes": [*_numbers(1, 59), *_spoken(1, 59), *_COMMON_TIMES],
    "timer_seconds": [*_numbers(5, 59), *_spoken(5, 59), *_COMMON_TIMES],
    "timer_half": [("half", "30"), ("a half", "30")],
    "timer_name": _words(
        "pizza,pasta,egg,eggs,tea,laundry,cookies,bread,nap,workout,homework,rice,oven,chicken,"
        "cake,coffee,study,break,meditation,steak,potatoes,dishes,bath"
    ),
    "timer_command": _COMMANDS,
    "on_off_states": _words("on,off"),
    "cover_classes": [*_COVERS, ("garage door", "garage"), ("garage", "garage")],
    "cover_states": _words("open,closed"),
    "lock_states": _words("locked,unlocked"),
    "bs_open_states": _words("open,closed"),
    "bs_occupancy_states": _words("occupied,clear"),
    "brightness": [*_numbers(1, 100), *_numbers(10, 100, 10) * 5, *_spoken(10, 99)],
    "brightness_level": [
        *((word, "100") for word in ("max", "maximum", "highest", "brightest")),
        *((word, "1") for word in ("min", "minimum", "lowest", "dimmest")),
    ],
    "volume": [*_numbers(0, 100), *_numbers(10, 100, 10) * 4, *_spoken(5, 99)],
    "volume_step": _words("up,down"),
    "volume_step_up": _numbers(5, 50, 5) + _numbers(1, 30),
    "volume_step_down": [(n, f"-{n}") for n, _ in _numbers(5, 50, 5) + _numbers(1, 30)],
    "fan_speed": [*_numbers(0, 100, 5), *_numbers(1, 100), *_spoken(10, 99)],
    "position": [*_numbers(0, 100, 5), *_numbers(1, 99), *_spoken(10, 99)],
    "temperature": [*_numbers(15, 30) * 4, *_numbers(55, 85) * 2, *_spoken(16, 80)],
    "color": _COLORS,
    "color_temperature": _numbers(2000, 6500, 100),
    "color_temperature_names": _words("warm white,cool white,daylight,candle light,soft white"),
    "zone": _words("home,work,school,the gym"),
    "todo_list_item": _TASKS + _ITEMS,
    "shopping_list_item": _ITEMS,
    "message": _MESSAGES,
    "story_topic": _words(
        "a dog,a cat,a little girl,a brave boy,a dragon,a princess,a robot,the moon,the sea,a lost "
        "toy,two friends,a big tree,a rabbit,a red car,a bear,pirates,a birthday,a garden,a bird"
    ),
}
