"""Three short texts of our own for the demo, one sentence a line, and a question that one of them answers."""

__all__ = ["PASSAGES", "QUESTION"]

PASSAGES = {
    "The tide mill": """\
A tide mill needs neither wind nor river.
Twice a day the rising sea fills a pond behind a gate, and at low water the pond runs out over a wheel.
High water comes fifty minutes later each day, so the miller's hours wandered around the clock.
""",
    "Bees in winter": """\
Honey bees do not sleep through the winter.
They gather into a ball around the queen and shiver, which keeps its middle as warm as a summer day.
Those outside and those inside change places all the time, and the honey of a whole summer is the fuel.
""",
    "The night train": """\
The night train left at ten and crossed two borders before breakfast.
The guard kept all passports in a wooden box, so that nobody had to be woken when the officers came.
In the morning there was coffee, and mountains where the plain had been.
""",
}

QUESTION = "How do insects survive the cold?"
