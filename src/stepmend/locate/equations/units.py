"""Units of measure that may stand right after a number, as symbols; whole words of prose need no list."""

UNITS = frozenset(
    """
    mm cm dm km um nm in ft yd mi mg kg lb lbs oz ml mL cl dl gal qt pt tsp tbsp sec secs min mins hr hrs ms yr yrs wk wks mo mph kph km/h
    kmh kw kwh hz khz mhz ghz kb mb gb tb pa kpa atm mol kj kcal cal rad deg degree degrees sq cu ac ha usd cent cents dollar dollars
    inch inches foot feet yard yards mile miles meter meters metre metres gram grams pound pounds ounce ounces liter liters litre litres
    second seconds minute minutes hour hours day days week weeks month months year years unit units
    """.split()  # noqa: SIM905
)
"""What letters glued to a number may be; any other letters are variables."""
SHORT = frozenset("of in on at is to by or as if an he we it so no up my me do go us be am pm tv cd km pc".split())  # noqa: SIM905
"""Words of two letters that are neither units nor variables."""
MEASURES = frozenset(
    """
    pound ounce hour minute second week month year inch foot feet yard mile cup pint quart gallon gram cent dollar day
    mm cm km kg mg lb oz ft yd mi hr min sec ml liter litre meter metre kilometer kilometre centimeter kilogram
    """.split()  # noqa: SIM905
)
"""Units that convert into one another: an equation with two of them is not judged."""
LETTERS = {
    "m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter", "N": "newton", "J": "joule", "W": "watt",
    "V": "volt",
}  # fmt: skip
"""Units of one letter, where a formula sets them as text."""
