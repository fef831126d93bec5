from fractions import Fraction

import pytest

from mplus.training.talk.scales import (
    number_words,
    read_amount,
    read_date,
    read_month,
    read_ordinal,
    read_time,
    read_weekday,
)


@pytest.mark.parametrize(
    ("read", "written", "moved", "then"),
    [
        (read_amount, "3", 2, "5"),
        (read_amount, "seven", 2, "nine"),
        (read_amount, "forty two", 1, "forty three"),
        (read_amount, "a hundred and twenty", 5, "a hundred and twenty-five"),
        (read_amount, "1,400", 100, "1,500"),
        (read_amount, "48 200", 1000, "49 200"),
        (read_amount, "£1,250.00", 1, "£1,251.00"),
        (read_amount, "€12,50", Fraction(1, 2), "€13,00"),
        (read_amount, "about 20 euros", 5, "about 25 euros"),
        (read_ordinal, "the 3rd", 19, "the 22nd"),
        (read_ordinal, "fifth", 1, "sixth"),
        (read_time, "17:30", 45, "18:15"),
        (read_time, "08:00", 60, "09:00"),
        (read_time, "5.30 pm", -60, "4.30 pm"),
        (read_time, "6am", 30, "6:30am"),
        (read_time, "half past five", 15, "quarter to six"),
        (read_time, "quarter to one", 15, "one"),
        (read_time, "0615", 60, "0715"),
        (read_time, "five o'clock", 60, "six o'clock"),
        (read_date, "3 March", 30, "2 April"),
        (read_date, "March 3rd, 2024", -3, "February 29th, 2024"),
        (read_date, "Friday 7 June", 3, "Monday 10 June"),
        (read_date, "sat 4 oct", 1, "sun 5 oct"),
        (read_date, "2024-12-31", 1, "2025-01-01"),
        (read_date, "3.3.", 1, "4.3."),
        (read_date, "03/03/24", 1, "04/03/24"),
        (read_date, "3/25", 1, "3/26"),
        (read_weekday, "Tuesdays", 6, "Mondays"),
        (read_weekday, "tues", 1, "wed"),
        (read_month, "late march", 10, "late january"),
    ],
)
def test_a_value_is_written_back_as_it_was_and_moved_in_the_same_form(read, written, moved, then):
    reading = read(written)
    assert reading.write(reading.number) == written
    assert reading.write(reading.number + moved) == then


def test_what_is_not_on_the_scale_is_not_read():
    assert read_amount("a few") is None
    assert read_time("after lunch") is None
    assert read_date("next week") is None
    assert read_weekday("tomorrow") is None


def test_numbers_in_words():
    assert [number_words(n) for n in (13, 40, 99, 206, 1400, 1024)] == [
        "thirteen", "forty", "ninety-nine", "two hundred and six", "one thousand four hundred", "one thousand and twenty-four",
    ]  # fmt: skip
