"""What experiments ask: openings of the kind that the demo pair was trained on."""

OPENINGS = (
    "I'd like to book a table for two at an Italian restaurant in San Jose this Friday evening.",
    "Can you find me a bus from Sacramento to Los Angeles for tomorrow morning?",
    "I need a hotel in Chicago for three nights, something with at least four stars.",
    "What will the weather be like in Portland on Saturday?",
    "Play me some rock music, something from last year.",
    "I'm looking for an apartment to rent in Oakland with two bedrooms.",
    "Please find a dentist in Berkeley who has time next Monday.",
    "Are there any good concerts in New York next weekend?",
    "Rent me a car in Seattle from the 8th to the 12th of March.",
    "Send 50 dollars from my checking account to Maria.",
    "Is there a comedy I could watch tonight in Fremont?",
    "I want to fly from Atlanta to Phoenix on the first of March, economy class.",
)


def openings(count: int) -> tuple[str, ...]:
    """So many of them, again from the first when there are no more: an answer has a seed of its own."""
    return tuple(OPENINGS[index % len(OPENINGS)] for index in range(count))
