"""What the project's pages share: templates, stylesheet, script and macros; pictures and other plain data that go into them.

A page is one HTML file with everything inside. It asks nothing of the network, and follows the reader's light or dark theme.
"""

import base64
import io
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pydantic

from pipeline.drawing.svg import number

_WEBP_QUALITY = 90


class PageData(pydantic.BaseModel):
    """Plain data of a page, saved as JSON beside it, from which it can be made again."""

    # Pictures travel as base64, and a loss that is not a number as a string, so that the JSON is valid JSON.
    model_config = pydantic.ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
        ser_json_inf_nan="strings",
    )


class Picture(PageData):
    """A PNG with the words that belong to it."""

    png: bytes
    alt: str
    """What the picture shows, for those who do not see it."""
    caption: str = ""


def page_environment(*folders: Path) -> jinja2.Environment:
    """The templates of `folders`, with what every page shares: stylesheet, script, macros, filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number,
        moment=moment,
        data_uri=_data_uri,
        size=_picture_size,
        sum_values=lambda counts: sum(counts.values()),
    )
    return environment


def duration(seconds: float) -> str:
    """Such as "8.3 s", "42 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(text: str) -> str:
    """An ISO 8601 time for people, in UTC; anything else as it is."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    utc = time if time.tzinfo is None else time.astimezone(UTC)
    return f"{utc.day} {utc:%B %Y, %H:%M} UTC"


def _data_uri(picture: Picture) -> str:
    """The picture inside the page: as WebP where that is smaller, which for photographs it is by far."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture.png)) as image:
        image.save(buffer, "WEBP", quality=_WEBP_QUALITY, method=4)
    webp = buffer.getvalue()
    kind, content = ("webp", webp) if len(webp) < len(picture.png) else ("png", picture.png)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _picture_size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels, so that the page does not jump while it loads."""
    return int.from_bytes(picture.png[16:20]), int.from_bytes(picture.png[20:24])
