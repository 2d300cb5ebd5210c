"""Short facts of 20 to 60 tokens, each with a question, for `questions.py`."""

from __future__ import annotations

#: Text, question, and words of which a right answer has one.
Fact = tuple[str, str, tuple[str, ...]]

#: Those that are measured: nothing was chosen on them.
MEASURED: tuple[Fact, ...] = (
    (
        "The bakery on Mill Lane opens at six in the morning and closes at two in the afternoon. On Mondays it stays shut, "
        "because the oven is cleaned.",
        "On which day is the bakery shut?",
        ("monday",),
    ),
    (
        "Our ferry to the island of Torran leaves from pier nine. Tickets cost fourteen euros and are sold on board. Dogs "
        "travel free of charge.",
        "From which pier does the ferry leave?",
        ("nine", "9"),
    ),
    (
        "Doctor Ines Calder keeps three parrots in her practice. The oldest one, called Biscuit, can whistle the national "
        "anthem of Portugal.",
        "What is the name of the oldest parrot?",
        ("biscuit",),
    ),
    (
        "In the north tower of the castle there is a bell of bronze that was cast in 1687. It cracked in a fire and has not "
        "been rung since.",
        "In which year was the bell cast?",
        ("1687",),
    ),
    (
        "The spare key to the archive is in the blue teapot on the second shelf of the kitchen. Please put it back after use.",
        "Where is the spare key to the archive?",
        ("teapot",),
    ),
    (
        "Members may borrow up to seven books at a time. Whoever keeps a book for longer than four weeks pays a fee of "
        "thirty cents for each day.",
        "How many books may a member borrow at a time?",
        ("seven", "7"),
    ),
    (
        "The village of Oderlin is known for its violins. Its workshop was founded by Marta Voss, who had learnt the craft in "
        "Cremona as a young woman.",
        "Who founded the workshop in Oderlin?",
        ("marta", "voss"),
    ),
    (
        "The expedition crossed the desert of Karrah with eleven camels and two guides. Water was the problem: on the fifth "
        "day they had only six litres left.",
        "How many camels did the expedition have?",
        ("eleven", "11"),
    ),
    (
        "To reset the pump, hold the green button for ten seconds until the lamp turns yellow. The red button is only for "
        "emergencies.",
        "Which button resets the pump?",
        ("green",),
    ),
    (
        "The new stadium in Larkhaven seats forty thousand people. Its roof is covered with solar panels, which light the "
        "whole district at night.",
        "What is the roof of the stadium covered with?",
        ("solar", "panels"),
    ),
    (
        "Ravi grows saffron on the roof of his house in Leeds. Last autumn he harvested ninety grams, enough for all the "
        "restaurants in his street.",
        "What does Ravi grow on the roof of his house?",
        ("saffron",),
    ),
    (
        "The committee meets in room 4B every second Thursday. Its chair is Helen Okafor. Minutes are sent to all "
        "members within three days.",
        "Who is the chair of the committee?",
        ("helen", "okafor"),
    ),
)

#: Others, on which the defaults of writers were tried.
TRIED: tuple[Fact, ...] = (
    (
        "The lighthouse of Skarvik was painted orange in 1954 so that it could be seen in snow. Before that it was plain white stone.",
        "What colour is the lighthouse of Skarvik?",
        ("orange",),
    ),
    (
        "Nadia Fenwick teaches chemistry at the school in Ambleton. Every spring she takes her pupils to the salt mine at Hallbrook.",
        "Which subject does Nadia Fenwick teach?",
        ("chemistry",),
    ),
    (
        "The night train to Varna departs at 22:40 from platform three. Passengers with bicycles use the last carriage.",
        "At what time does the night train to Varna depart?",
        ("22:40", "10:40"),
    ),
    (
        "Our cat Pepper hides under the piano whenever it thunders. The dog, Rufus, sleeps through every storm.",
        "Where does the cat hide when it thunders?",
        ("piano",),
    ),
    (
        "The recipe needs three eggs, two hundred grams of flour and a pinch of nutmeg. Bake it for forty minutes.",
        "How long must it bake?",
        ("forty", "40"),
    ),
    (
        "The museum was designed by the architect Tomas Lindqvist and opened on the ninth of May. Its largest hall holds a whale skeleton.",
        "Who designed the museum?",
        ("tomas", "lindqvist"),
    ),
    (
        "On Friday the library lends out tablets. A library card costs twelve euros a year, and children under ten pay nothing.",
        "How much does a library card cost a year?",
        ("twelve", "12"),
    ),
    (
        "Lake Merrow is ninety metres deep. Divers found a sunken steamboat in it, the Clementine, which had carried coal.",
        "What was the name of the sunken steamboat?",
        ("clementine",),
    ),
    (
        "The password for the guest network is written on a card behind the clock. It is changed on the first day of every month.",
        "Where is the password for the guest network written?",
        ("clock", "card"),
    ),
    (
        "Grandfather planted a walnut tree when my sister was born. It is now taller than the house and full of squirrels.",
        "What kind of tree did grandfather plant?",
        ("walnut",),
    ),
    (
        "The band Silver Heron comes from Tallinn. Their drummer, Kaia Mets, used to work as a baker.",
        "From which city does the band Silver Heron come?",
        ("tallinn",),
    ),
    (
        "The summer market opens on 14 June and runs for eleven weeks. Farmers sell honey, cheese and cut flowers by the bridge.",
        "On which day does the summer market open?",
        ("14 june", "june 14", "14th"),
    ),
)
