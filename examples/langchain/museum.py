"""A made-up museum: what its catalogue says, and questions with the words a right answer must hold."""

from langchain_core.documents import Document

KINDS = ["copper", "wooden", "painted", "silver", "woven", "glass", "stone", "leather", "ivory", "paper"]
THINGS = ["lantern", "compass", "drum", "mask", "globe", "bowl", "clock", "flute", "kite", "chess board", "map", "bell"]
PLACES = ["Bergen", "Lisbon", "Cairo", "Quito", "Osaka", "Riga", "Tunis", "Perth", "Lima", "Graz", "Accra", "Oslo"]
ROOMS = ["cellar", "attic", "tower", "garden house", "north wing", "chapel", "library"]


def catalogue(size: int) -> list[Document]:
    """The first pages of the catalogue, one object each; at most 120."""
    documents: list[Document] = []
    for number in range(size):
        name = object_name(number)
        page = (
            f"The {name} was found in {PLACES[number * 5 % 12]} and is kept in the {ROOMS[number * 3 % 7]}. It came to "
            f"the museum in {1870 + number * 17 % 130} and may be seen on request."
        )
        documents.append(Document(page, id=f"object-{number}", metadata={"source": f"catalogue page {number + 1}"}))
    return documents


def questions(count: int, size: int) -> list[tuple[str, str]]:
    """Questions about objects spread over the first ``size`` pages, and what a right answer holds."""
    asked: list[tuple[str, str]] = []
    for n in range(count):
        number = n * size // count
        asked.append((f"Where was the {object_name(number)} found?", PLACES[number * 5 % 12]))
    return asked


def object_name(number: int) -> str:
    return f"{KINDS[number % 10]} {THINGS[(number + number // 60) % 12]}"
