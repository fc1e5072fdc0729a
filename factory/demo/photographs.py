"""The real photographs the demo is cut from, and what each part of them shows."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from factory.errors import MissingExtraError, ObjectNotFoundError

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[int, int, int, int]

_SKIMAGE = ("skimage", "scikit-image", "data")
_SKLEARN = ("sklearn", "scikit-learn", "datasets/images")
# The colours of a photograph that has none.
GREY = "shades of grey"
_CC0 = "CC0"
_PUBLIC = "public domain"
_FREE = "no known copyright restrictions"
_UNSTATED = "not stated by the package"


@dataclass(frozen=True, slots=True)
class View:
    """A part of a photograph that is worth a picture of its own.

    Attributes:
        box: Left, upper, right and lower edge, in the photograph's pixels.
        shows: What is in it, as a noun phrase.
        colours: Its colours, as a phrase that can follow "in".
    """

    box: Box
    shows: str
    colours: str


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph that an installed package ships.

    Attributes:
        name: A word for file names.
        kind: The sub folder its pictures go to.
        package: Import name, distribution name and folder of the package that ships it.
        file: Its file name there.
        share: How many pictures are cut from it.
        subjects: Noun phrases that each describe the whole.
        colours: The whole's colours, as a phrase that can follow "in".
        views: Parts worth a picture of their own.
        credit: Who made it, as the package says.
        licence: Its terms, as the package states them.
    """

    name: str
    kind: str
    package: tuple[str, str, str]
    file: str
    share: int
    subjects: tuple[str, ...]
    colours: str
    views: tuple[View, ...]
    credit: str
    licence: str

    def path(self) -> Path:
        """Return where the photograph lies, without importing its package.

        Raises:
            MissingExtraError: The package is not installed.
            ObjectNotFoundError: The installed package does not ship the file.
        """
        module, distribution, folder = self.package
        spec = importlib.util.find_spec(module)
        if spec is None or not spec.submodule_search_locations:
            raise MissingExtraError(distribution, "demo", "the demo data")
        path = Path(spec.submodule_search_locations[0]) / folder / self.file
        if not path.is_file():
            raise ObjectNotFoundError(
                f"the installed {distribution} does not ship {self.file!r}, which the demo data "
                "is cut from; install the version that constraints.txt names"
            )
        return path

    def read(self) -> "Image":
        """Return the whole photograph, decoded to RGB."""
        from PIL import Image

        with Image.open(self.path()) as image:
            return image.convert("RGB")


def _views(*views: tuple[Box, str, str]) -> tuple[View, ...]:
    return tuple(View(*view) for view in views)


def _grey(*views: tuple[Box, str]) -> tuple[View, ...]:
    return tuple(View(box, shows, GREY) for box, shows in views)


# The boxes were drawn by eye on the photographs; the shares sum to the demo's picture count,
# with more for the colourful ones that offer more to see.
PHOTOGRAPHS: tuple[Photograph, ...] = (
    Photograph(
        "astronaut", "people", _SKIMAGE, "astronaut.png", 24,
        (
            "an astronaut in an orange space suit",
            "a smiling woman in an orange space suit, with a flag and a model rocket behind her",
        ),
        "orange, white and black",
        _views(
            ((140, 10, 310, 190), "the smiling face of an astronaut with short hair",
             "blonde and pale grey"),
            ((115, 310, 225, 430), "a round mission patch on a space suit", "purple and orange"),
            ((260, 335, 512, 512), "a space helmet with a dark visor", "black, white and orange"),
            ((330, 0, 490, 290), "a model of a space shuttle on its rocket", "white and brown"),
            ((0, 0, 110, 330), "the folds of an American flag", "red, white and blue"),
            ((20, 220, 350, 500), "the front of a space suit with sewn patches", "orange"),
        ),
        "NASA", _PUBLIC,
    ),
    Photograph(
        "photographer", "people", _SKIMAGE, "camera.png", 18,
        (
            "a man in a dark coat looking through a camera on a tripod",
            "a photographer at work on a lawn in front of a city",
        ),
        GREY,
        _grey(
            ((150, 50, 345, 240), "a man's face close behind a camera"),
            ((245, 110, 345, 215), "a camera held by a gloved hand"),
            ((225, 290, 410, 512), "the legs of a tripod on the grass"),
            ((345, 100, 512, 260), "a tower and city buildings on the horizon"),
            ((0, 150, 250, 512), "a man's dark coat and trousers"),
        ),
        "Lav Varshney", _CC0,
    ),
    Photograph(
        "cat", "animals", _SKIMAGE, "chelsea.png", 26,
        ("a tabby cat", "the face of a striped cat", "a cat looking to the side"),
        "brown, grey and green",
        _views(
            ((125, 75, 220, 160), "a cat's wide open eye", "green and brown"),
            ((275, 85, 365, 180), "an eye of a tabby cat", "green and brown"),
            ((190, 190, 330, 300), "a cat's nose and whiskers", "reddish brown"),
            ((60, 0, 340, 110), "the striped forehead of a cat", "brown and black"),
            ((0, 180, 230, 300), "white whiskers on a cat's cheek", "brown and white"),
            ((120, 70, 370, 180), "the two eyes of a cat", "green and brown"),
        ),
        "Stefan van der Walt", _CC0,
    ),
    Photograph(
        "coffee", "objects", _SKIMAGE, "coffee.png", 26,
        (
            "a cup of espresso on a saucer",
            "a cup of coffee with a spoon, on a wooden table",
        ),
        "red, white and brown",
        _views(
            ((165, 10, 420, 215), "a cup half filled with coffee", "red, white and amber"),
            ((195, 100, 385, 210), "the smooth surface of an espresso", "golden brown and white"),
            ((310, 230, 420, 335), "a small spoon resting on a saucer", "silver and red"),
            ((170, 205, 300, 325), "the shiny handle of a coffee cup", "dark red"),
            ((480, 0, 600, 400), "the boards of a polished wooden table", "brown"),
            ((70, 220, 330, 400), "the curved rim of a saucer", "red and brown"),
        ),
        "Rachel Michetti", _CC0,
    ),
    Photograph(
        "coins", "objects", _SKIMAGE, "coins.png", 14,
        ("four rows of ancient coins", "twenty-four Greek coins on a dark cloth"),
        GREY,
        _grey(
            ((292, 5, 380, 90), "a coin that shows a standing figure"),
            ((230, 85, 310, 155), "an ancient coin that shows a head in profile"),
            ((300, 145, 384, 230), "a large and worn coin"),
            ((10, 10, 384, 95), "the top row of ancient coins"),
            ((10, 223, 384, 303), "the bottom row of ancient coins"),
        ),
        "Brooklyn Museum Collection", _FREE,
    ),
    Photograph(
        "galaxies", "science", _SKIMAGE, "hubble_deep_field.jpg", 22,
        ("a sky full of distant galaxies", "galaxies of many colours seen by a space telescope"),
        "black, with spots of white, orange and blue",
        _views(
            ((640, 400, 860, 640), "a large galaxy above a bright star", "orange and white"),
            ((60, 340, 190, 460), "a round spiral galaxy", "white on black"),
            ((240, 60, 480, 200), "a few bright galaxies among faint ones", "red, blue and black"),
            ((260, 280, 380, 370), "a small group of galaxies", "bluish white on black"),
            ((360, 640, 600, 800), "an oval galaxy with a bright centre", "orange on black"),
            ((500, 120, 800, 330), "a patch of sky with faint galaxies", "black and white"),
        ),
        "NASA", _PUBLIC,
    ),
    Photograph(
        "retina", "science", _SKIMAGE, "retina.jpg", 16,
        ("a human retina", "the inside of an eye with its blood vessels"),
        "orange and red on black",
        _views(
            ((80, 500, 420, 860), "the bright optic disc of a retina", "yellow and orange"),
            ((560, 560, 860, 860), "the dark spot in the middle of a retina", "red and orange"),
            ((250, 150, 900, 600), "branching blood vessels of an eye", "red and orange"),
            ((400, 900, 1200, 1350), "blood vessels across the lower retina", "red and orange"),
        ),
        "Mikael Häggström, Wikimedia Commons", _CC0,
    ),
    Photograph(
        "rocket", "places", _SKIMAGE, "rocket.jpg", 22,
        ("a rocket on its launch pad at dusk", "a rocket between four lattice towers"),
        "dark blue, white and yellow",
        _views(
            ((270, 110, 370, 420), "a tall rocket ready for launch", "white and dark blue"),
            ((275, 105, 365, 215), "the nose of a rocket", "white and dark blue"),
            ((0, 0, 110, 427), "a steel lattice tower in the evening", "black and dark blue"),
            ((540, 0, 640, 427), "a lattice tower in front of an evening sky", "dark blue"),
            ((80, 330, 300, 427), "bright lamps at the foot of a launch pad", "yellow and blue"),
            ((390, 100, 520, 427), "a slender tower with a mast", "white and dark blue"),
        ),
        "SpaceX", _PUBLIC,
    ),
    Photograph(
        "motorcycle", "objects", _SKIMAGE, "motorcycle_left.png", 24,
        ("a motorcycle in a garage", "a parked motorcycle in front of shelves"),
        "red, black and grey",
        _views(
            ((490, 105, 595, 205), "the round headlight of a motorcycle", "silver and black"),
            ((310, 240, 480, 390), "the engine of a motorcycle", "silver and grey"),
            ((500, 270, 700, 465), "the front wheel of a motorcycle", "black, grey and red"),
            ((110, 235, 290, 410), "the rear wheel of a motorcycle", "black and grey"),
            ((140, 140, 360, 260), "the seat of a motorcycle", "black and red"),
            ((340, 150, 500, 260), "the fuel tank of a motorcycle", "red"),
            ((510, 10, 741, 120), "cardboard boxes on metal shelves", "brown and grey"),
        ),
        "Middlebury 2014 stereo benchmark", _UNSTATED,
    ),
    Photograph(
        "tissue", "science", _SKIMAGE, "ihc.png", 16,
        ("stained tissue under a microscope", "glands of a tissue sample seen in a microscope"),
        "brown, white and blue",
        _views(
            ((245, 290, 390, 510), "a round gland in a tissue sample", "brown"),
            ((0, 0, 270, 250), "long cells in dense rows", "brown and blue"),
            ((390, 300, 512, 512), "pale tissue with small nuclei", "white and blue"),
            ((280, 0, 460, 300), "a gland with a pale slit in it", "brown and white"),
        ),
        "Center for Microscopy and Molecular Imaging", _FREE,
    ),
    Photograph(
        "bricks", "textures", _SKIMAGE, "brick.png", 8,
        ("long bricks laid in rows", "a surface of grey bricks"),
        GREY,
        _grey(
            ((0, 0, 256, 256), "narrow bricks with pale joints"),
            ((200, 100, 420, 330), "a few long bricks and the mortar between them"),
        ),
        "CC0Textures", _CC0,
    ),
    Photograph(
        "grass", "textures", _SKIMAGE, "grass.png", 8,
        ("a dense patch of grass", "grass blades and small leaves seen from above"),
        GREY,
        _grey(
            ((0, 0, 256, 256), "crossing blades of grass"),
            ((220, 180, 440, 400), "tangled stalks of grass"),
        ),
        "linolafett, DeviantArt", _CC0,
    ),
    Photograph(
        "gravel", "textures", _SKIMAGE, "gravel.png", 8,
        ("a bed of gravel", "many small stones seen from above"),
        GREY,
        _grey(
            ((0, 0, 256, 256), "small broken stones"),
            ((240, 200, 460, 420), "rough pieces of gravel"),
        ),
        "CC0Textures", _CC0,
    ),
    Photograph(
        "moon", "science", _SKIMAGE, "moon.png", 14,
        ("the surface of the moon", "a plain on the moon with a few craters"),
        GREY,
        _grey(
            ((75, 40, 170, 130), "a round crater on the moon"),
            ((270, 60, 390, 200), "a bright ridge beside a small dark crater"),
            ((205, 365, 315, 485), "dark patches on the moon"),
        ),
        "scikit-image", _UNSTATED,
    ),
    Photograph(
        "cell", "science", _SKIMAGE, "cell.png", 8,
        ("a bright round cell on a plain background", "a single cell seen in a microscope"),
        GREY,
        _grey(((330, 280, 520, 480), "a glowing round cell with a dark rim")),
        "Paul Müller and others", _CC0,
    ),
    Photograph(
        "page", "textures", _SKIMAGE, "page.png", 8,
        ("a printed page of a text book", "black print on an unevenly lit page"),
        GREY,
        _grey(
            ((0, 0, 300, 85), "the heading of a printed page"),
            ((0, 45, 384, 145), "lines of printed text"),
        ),
        "scikit-image", _UNSTATED,
    ),
    Photograph(
        "handwriting", "textures", _SKIMAGE, "text.png", 8,
        ("handwritten formulas on ruled paper", "ink symbols on paper, seen at a slant"),
        GREY,
        _grey(
            ((130, 10, 300, 130), "a few handwritten symbols"),
            ((0, 20, 160, 150), "pen strokes on paper"),
        ),
        "Wikipedia", _PUBLIC,
    ),
    Photograph(
        "pagoda", "places", _SKLEARN, "china.jpg", 28,
        (
            "a Chinese pagoda above a lake",
            "a many-storeyed tower with tiled roofs among trees",
        ),
        "red, green and pale blue",
        _views(
            ((60, 20, 360, 400), "a pagoda with tiled roofs", "red, green and orange"),
            ((90, 20, 330, 140), "the top roof of a pagoda", "orange, green and pale blue"),
            ((60, 230, 350, 330), "a balcony below a tiled roof", "red and green"),
            ((370, 190, 560, 300), "a calm lake with small boats", "pale grey"),
            ((540, 130, 640, 427), "a tall tree at the edge of a lake", "green and grey"),
            ((340, 0, 640, 130), "a pale and empty sky", "white and pale blue"),
            ((330, 290, 640, 427), "the tops of leafy trees", "green"),
        ),
        "danielbuechele", "CC-BY 2.0",
    ),
    Photograph(
        "dahlia", "flowers", _SKLEARN, "flower.jpg", 28,
        ("a dahlia in front of dark leaves", "a round flower with a second one below it"),
        "orange and dark green",
        _views(
            ((160, 75, 455, 370), "a round dahlia in full bloom", "orange"),
            ((240, 150, 380, 290), "the curled petals at the heart of a dahlia", "orange and red"),
            ((240, 347, 500, 427), "the upper petals of a flower", "pale orange and green"),
            ((455, 20, 640, 330), "blurred leaves in the dark", "dark green and blue"),
            ((170, 80, 320, 360), "the left side of a dahlia", "orange and dark green"),
        ),
        "vultilion", "CC-BY 2.0",
    ),
)  # fmt: skip
