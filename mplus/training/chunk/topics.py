"""Topics for made-up encyclopedia paragraphs: many sorts of things, in many places and times."""

import random

SORTS = (
    "the history of {craft} in {place}",
    "the city of {place}",
    "a river in {place}",
    "a mountain range in {place}",
    "an island near {place}",
    "a {age} war between {place} and {place}",
    "the economy of {place} in the {age}",
    "the climate and wildlife of {place}",
    "a railway line in {place}",
    "a bridge in {place} and its engineers",
    "a university in {place}",
    "a museum in {place} and its collection",
    "a festival in {place}",
    "the cuisine of {place}",
    "a {sport} club from {place}",
    "a {sport} championship held in {place}",
    "a {person} from {place}",
    "a {age} {person}",
    "a {person} who became famous for {craft}",
    "a film about a {person}",
    "a novel set in {place} in the {age}",
    "an album by a band from {place}",
    "a television series about {craft}",
    "a company that makes {product}",
    "how {product} are made",
    "the invention of {product}",
    "the {animal} and where it lives",
    "how the {animal} breeds and what it eats",
    "the discovery of a {science}",
    "the {science} and how it is measured",
    "a theory in {field}",
    "the beginnings of {field}",
    "a disease of the {organ} and its treatment",
    "the {organ} and what it does",
    "an election in {place}",
    "the constitution of {place}",
    "a law about {product}",
    "a trade union of people who work in {craft}",
    "the architecture of {place}",
    "a cathedral in {place}",
    "a religious order founded in the {age}",
    "a language spoken in {place}",
    "a treaty signed in {place}",
    "an expedition from {place} in the {age}",
    "an earthquake near {place}",
    "a spacecraft that studied a {science}",
    "a ship built in {place}",
    "an airport in {place}",
    "a hospital in {place} and its founder",
    "a newspaper printed in {place}",
)
PARTS = {
    "place": (
        "Norway,Ghana,Peru,Vietnam,Scotland,Bavaria,Morocco,Chile,Estonia,Kenya,Quebec,Sicily,Tasmania,Bengal,Ukraine,"
        "Cuba,Iceland,Mongolia,Portugal,Queensland,Brittany,Georgia,Ohio,Texas,Yunnan,Java,Crete,Wales,Senegal,Oman,"
        "Lisbon,Hamburg,Osaka,Nairobi,Montreal,Prague,Lima,Athens,Mumbai,Boston,Cairo,Seoul,Denver,Leeds,Geneva,Lagos"
    ),
    "age": (
        "bronze age,first century,twelfth century,thirteenth century,fifteenth century,sixteenth century,"
        "seventeenth century,eighteenth century,nineteenth century,1890s,1920s,1950s,1970s,1990s,early 2000s"
    ),
    "craft": (
        "weaving,printing,brewing,mining,shipbuilding,glassmaking,farming,fishing,forestry,banking,pottery,photography,"
        "clockmaking,papermaking,cheesemaking,steelmaking,tanning,beekeeping,teaching,nursing,theatre,dance,opera"
    ),
    "sport": "football,rugby,cricket,hockey,basketball,rowing,cycling,fencing,swimming,chess,tennis,ski jumping",
    "person": (
        "queen,king,general,bishop,explorer,painter,composer,poet,chemist,astronomer,engineer,physician,merchant,"
        "senator,judge,novelist,singer,actor,architect,botanist,mathematician,philosopher,pilot,inventor,footballer"
    ),
    "product": (
        "bicycles,telescopes,batteries,violins,ships,carpets,medicines,computers,bricks,trains,watches,engines,mirrors,"
        "chocolates,aeroplanes,radios,tractors,lenses,cameras,umbrellas,cables,dyes,bells,maps"
    ),
    "animal": (
        "otter,owl,salmon,honeybee,elephant,lynx,octopus,tortoise,bat,heron,reindeer,whale,beetle,frog,camel,penguin,"
        "wolf,hedgehog,eel,parrot,spider,seal,crane,squirrel"
    ),
    "science": (
        "comet,planet,chemical element,subatomic particle,magnetic field,glacier,volcano,fossil,star cluster,mineral,"
        "ocean current,virus,bacterium,enzyme,isotope,meteorite"
    ),
    "field": (
        "geometry,genetics,optics,economics,linguistics,astronomy,thermodynamics,statistics,psychology,geology,"
        "computer science,medicine,botany,sociology,logic,acoustics,ecology,chemistry"
    ),
    "organ": "heart,liver,lung,eye,ear,kidney,skin,stomach,brain,thyroid,spleen,knee",
}
VALUES = {part: tuple(values.split(",")) for part, values in PARTS.items()}


def topic(rng: random.Random) -> str:
    """A random topic, as it stands after "about"."""
    sort = rng.choice(SORTS)
    for part, values in VALUES.items():
        while (hole := f"{{{part}}}") in sort:
            sort = sort.replace(hole, rng.choice(values), 1)
    return sort
