"""Names and values that generated facts are made of."""

FIRST_NAMES = (
    "Anna Bruno Chidi Dana Emeka Farah Goran Hana Ivan Jonas Kira Lars Mina Nils Olga Pablo Quinn Ruth Sven Tara "
    "Umar Vera Wanda Xenia Yusuf Zoe Adele Boris Carla Dmitri Elena Felix Greta Hugo Ines Jamal Katya Leo Marta "
    "Noah Oscar Priya Rafael Selma Tomas Ursula Viktor Wilma Yara Zeno Amir Bella Clara Diego Esther Fiona Gustav "
    "Heidi Igor Judith Kofi Lucia Milan Nadia Otto Paula Rosa Stefan Teresa Ulrich Vivian Walter Yasmin Zelda"
).split()
LAST_NAMES = (
    "Kowalska Lindqvist Okafor Moreau Tanaka Haddad Novak Petrov Silva Berger Costa Dubois Eriksen Fischer Garcia "
    "Hansen Ivanova Jensen Keller Lopez Meyer Nakamura Olsen Pereira Quist Rossi Santos Tamm Ueda Vogel Weber "
    "Yilmaz Zimmer Almeida Brandt Chen Dahl Endo Fuchs Greco Huber Ito Jansen Koch Lund Mori Nagy Orlov Park Roth"
).split()
CITIES = (
    "Graz Lisbon Toronto Oslo Nairobi Lima Kyoto Ghent Turin Cork Tartu Split Bergen Leeds Porto Quito Riga Seoul "
    "Tunis Utrecht Vilnius Warsaw Xalapa York Zagreb Aarhus Basel Cadiz Dakar Essen Faro Gdansk Haifa Izmir Jaipur "
    "Kazan Lyon Malmo Nantes Odessa Perth Quebec Rennes Salta Trieste Uppsala Verona Wuhan Yerevan Zadar"
).split()
COLOURS = "green blue red yellow purple orange turquoise pink brown silver black violet crimson beige".split()
JOBS = (
    "nurse,carpenter,pilot,teacher,baker,plumber,lawyer,photographer,gardener,architect,dentist,librarian,welder,"
    "translator,chemist,farmer,tailor,surveyor,optician,electrician,midwife,cartographer"
).split(",")
FOODS = (
    "walnuts,shellfish,strawberries,peanuts,gluten,eggs,soy,mushrooms,celery,mustard,sesame,kiwis,tomatoes,lactose"
).split(",")
DISHES = (
    "lasagne,ramen,paella,goulash,pho,moussaka,pierogi,curry,risotto,tacos,bibimbap,couscous,borscht,fondue,gnocchi"
).split(",")
INSTRUMENTS = "cello,trumpet,piano,violin,drums,flute,harp,guitar,oboe,accordion,clarinet,banjo".split(",")
PETS = "dog cat parrot rabbit hamster tortoise horse goat canary ferret".split()
PET_NAMES = (
    "Biscuit Pepper Momo Luna Rusty Olive Pixel Waffle Ziggy Nugget Clover Hazel Simba Toffee Bandit Mocha Juniper "
    "Pickle Domino Marble Sprout Cosmo Peanut Willow Gizmo Truffle"
).split()
RELATIVES = "sister brother mother father aunt uncle cousin neighbour boss grandmother".split()
RESTAURANTS = (
    "Il Pozzo,The Copper Kettle,Casa Verde,Blue Heron,Chez Odette,Golden Lotus,The Old Mill,Sakura House,La Paloma,"
    "Nine Olives,Harbour Lights,The Tin Cup,Bombay Corner,Zum Anker,Little Tbilisi,The Fig Tree"
).split(",")
BOOKS = (
    "The Salt Road,Winter Harbour,A Map of Rivers,The Glass Orchard,Seven Ferries,The Quiet Engine,Letters to Ada,"
    "Stone and Starling,The Last Beekeeper,Northern Rooms,The Paper Lighthouse,A Small Republic"
).split(",")
SPORTS = "tennis,climbing,rowing,fencing,swimming,judo,handball,archery,cycling,badminton,sailing,curling".split(",")
LANGUAGES = "Finnish,Portuguese,Swahili,Korean,Hungarian,Arabic,Greek,Welsh,Turkish,Danish,Basque,Hindi".split(",")
CARS = "Skoda,Volvo,Fiat,Toyota,Renault,Mazda,Opel,Honda,Seat,Subaru,Dacia,Peugeot".split(",")
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
EVENTS = (
    "dentist appointment,job interview,eye test,piano lesson,haircut,driving test,parents' evening,vet visit".split(",")
)
PLACES = "garage,station,airport,office,hospital,shopping centre".split(",")
OBJECTS = "spare key,passport,camera,red umbrella,tax folder,sewing machine,old phone,drill,wedding ring".split(",")
SPOTS = (
    "the top drawer,the blue suitcase,a shoe box under the bed,the kitchen cupboard,the glove compartment,the cellar,"
    "the piano stool,the attic,the green backpack,the bathroom shelf,the bread tin,the desk at work"
).split(",")
WORDS = "whale maple rocket copper falcon velvet harbor pepper sunset tulip glacier lantern meadow cobalt".split()
FAVOURITES = {
    "colour": COLOURS,
    "dish": DISHES,
    "sport": SPORTS,
    "restaurant": RESTAURANTS,
    "book": BOOKS,
    "city": CITIES,
}

SYLLABLES = (
    "ba be bo da de du fa fi ga ge ka ke ko la le li lo lu ma me mi mo na ne ni no pa pe ra re ri ro sa se ta te ti to "
    "va ve vi za zo"
).split()
