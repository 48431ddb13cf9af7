import os
import random
import unicodedata
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.frames.listing import IMAGE_SUFFIXES, Listing, check_below, list_inputs, natural, unknown_names
from pipeline.frames.rejects import Rejects
from pipeline.frames.sources.image_folder import ImageFolderSection, ImageFolderSettings, WholeImages
from pipeline.storage import copy_from_local, read_bytes, write_bytes

JPG = (".jpg",)


def fill(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return str(root)


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1.png", "frame_2.png", "frame_9.png", "frame_10.png", "frame_100.png"],
        ["9999.jpg", "10000.jpg"],
        ["frame.png", "frame (2).png", "frame (10).png"],
        ["a.jpg", "a2.jpg", "a2b.jpg", "a10.jpg", "b.jpg"],
        ["7.jpg", "007.jpg", "8.jpg"],
        ["v1.9/2.jpg", "v1.9/10.jpg", "v1.10/1.jpg"],
        ["t1_c9.jpg", "t1_c10.jpg", "t2_c1.jpg"],
    ],
)
def test_numbers_count_by_their_value(names):
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural) == names


@pytest.fixture(params=["local", "s3"])
def published(request, tmp_path):
    """Makes a local folder, or a copy of it in object storage, the root of a listing."""

    def publish(root: str) -> str:
        if request.param == "local":
            return root
        target = f"{request.getfixturevalue('s3')}/in"
        copy_from_local(root, target)
        return target

    return publish


def test_the_same_rules_on_every_storage(tmp_path, published):
    here = ["a/2.jpg", "a/10.JPG", "b c/ä#%.jpg"]
    behind = ["._a.jpg", "a/._2.jpg", "__MACOSX/a/2.jpg", ".ipynb_checkpoints/2.jpg", "@eaDir/2.jpg/x.jpg", ".x/2.jpg"]
    others = [
        "a/2.xmp",
        "notes.txt",
        "b c/more.TXT",
        "README",
        "Thumbs.db",
        "a/.DS_Store",
        "known.json",
        "a/2.labels.json",
    ]
    root = published(fill(tmp_path / "in", *here, *behind, *others))
    listing = list_inputs(root, JPG, beside=(".labels.json",), known=(f"{root}/known.json", None))
    assert list(listing.sizes) == here
    assert listing.notes == [f"{root}: 4 files of other kinds were left out: 2 .txt, 1 .xmp, 1 without a suffix"]
    assert [read_bytes(uri).decode() for uri in listing.uris()] == here
    assert list(listing.sizes.values()) == [len(name.encode()) for name in here]


def test_a_folder_in_a_hidden_one_and_a_file_by_itself_are_input(tmp_path):
    root = fill(tmp_path / ".cache" / "in", "1.jpg", "._2.jpg")
    assert list(list_inputs(root, JPG).sizes) == ["1.jpg"]
    assert list_inputs(f"{root}/._2.jpg", JPG).uris() == {f"{root}/._2.jpg": 7}
    assert not list_inputs(f"{root}/nothing", JPG).sizes


def test_links_give_every_file_once_and_never_a_circle(tmp_path):
    root = tmp_path / "in"
    fill(root, "z/1.jpg", "z/2.jpg", "y/3.jpg")
    outside = fill(tmp_path / "out", "4.jpg")
    (root / "a").symlink_to(root / "z")
    (root / "z" / "up").symlink_to(root)
    (root / "y" / "out").symlink_to(outside)
    (Path(outside) / "back").symlink_to(tmp_path)
    (root / "b.jpg").hardlink_to(root / "z" / "1.jpg")
    (root / "c.jpg").symlink_to(root / "y" / "3.jpg")
    (root / "dead.jpg").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.jpg")
    (root / "loop.jpg").symlink_to(root / "loop.jpg")
    listing = list_inputs(str(root), JPG)
    assert list(listing.sizes) == ["b.jpg", "y/3.jpg", "y/out/4.jpg", "z/2.jpg"]
    assert listing.notes == [
        f"{root}: 2 names were left out, other names (links) of files that are listed, such as 'z/1.jpg' of 'b.jpg'",
        f"{root}: 2 links were left out that lead to nothing, such as 'dead.jpg'",
    ]
    assert {name: listing.find(name)[0] for name in ("z/1.jpg", "a/1.jpg", "a/2.jpg", "c.jpg", "z/up/y/3.jpg")} == {
        "z/1.jpg": "b.jpg",
        "a/1.jpg": "b.jpg",
        "a/2.jpg": "z/2.jpg",
        "c.jpg": "y/3.jpg",
        "z/up/y/3.jpg": "y/3.jpg",
    }


def test_copies_are_files_of_their_own(tmp_path):
    root = fill(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    assert len(list_inputs(root, JPG).sizes) == 2


def test_names_of_labels_are_found(tmp_path, published):
    nfc, nfd = (unicodedata.normalize(form, "ö/ä.jpg") for form in ("NFC", "NFD"))
    listing = list_inputs(published(fill(tmp_path / "in", "a/1.jpg", nfd, "x y.jpg")), JPG)
    for name in ("a/1.jpg", "a\\1.jpg", "./a/1.jpg", "a//1.jpg", ".\\a\\\\1.jpg", "b/../a/1.jpg"):
        assert listing.find(name) == ("a/1.jpg", None)
    assert listing.find(nfc) == (nfd, None)
    assert listing.find("A/1.JPG") == ("A/1.JPG", "a/1.jpg")
    assert listing.find("a\\2.jpg") == ("a/2.jpg", None)


@pytest.mark.parametrize("name", ["/a.jpg", "../a.jpg", "..\\a.jpg", "C:\\a.jpg", "s3://bucket/a.jpg", ".", ""])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="below the source"):
        check_below(name)
    assert check_below("12:30.jpg") == "12:30.jpg"


def test_names_that_nothing_has_are_noted():
    assert unknown_names("k.json", ["a\\1.jpg"], ["a/1.jpg", "b.jpg"]) == []
    notes = unknown_names("k.json", ["z.jpg", "B.jpg"], ["b.jpg"])
    assert notes == [
        "k.json: 2 names were not in the input, such as 'B.jpg' (there is 'b.jpg': upper and lower case differ)"
    ]


def test_keys_that_cannot_be_read_are_named(s3):
    import boto3

    client = boto3.client("s3")
    for key in ("in/a/1.jpg", "in/a//2.jpg", "in//3.jpg", "in/./4.jpg", "in/folder/"):
        client.put_object(Bucket=s3.removeprefix("s3://"), Key=key, Body=b"x")
    listing = list_inputs(f"{s3}/in", JPG)
    assert list(listing.sizes) == ["a/1.jpg"]
    (note,) = [note for note in listing.notes if "objects" in note]
    assert "3 objects were left out whose keys cannot be read" in note
    with pytest.raises(StorageError, match=r"a//2\.jpg: Empty path component .*copy it to another key"):
        read_bytes(f"{s3}/in/a//2.jpg")


def test_an_empty_folder_says_what_it_holds_instead(tmp_path):
    root = fill(tmp_path, "1.heic", "2.txt")
    settings = ImageFolderSettings(uri=root, image_folder=ImageFolderSection(hands="whole_image"))
    if ".heic" in IMAGE_SUFFIXES:
        pytest.skip("pillow-heif is installed")
    with pytest.raises(Exception, match=r"no image here .*: 1 \.heic, 1 \.txt; \.heic needs pillow-heif \(pip install"):
        WholeImages(settings).list_units(Rejects())


def test_a_listing_of_names_alone_asks_no_storage(monkeypatch):
    monkeypatch.setattr(os, "stat", None)
    assert Listing("", {"clip_1": 0}).find("CLIP_1") == ("CLIP_1", "clip_1")


def test_files_that_come_and_go_do_not_stop_a_listing(tmp_path, monkeypatch):
    root = fill(tmp_path, "1.jpg", "2.jpg")
    scan = os.scandir

    def vanishing(path):
        entries = list(scan(path))
        (tmp_path / "2.jpg").unlink(missing_ok=True)
        return entries

    monkeypatch.setattr(os, "scandir", vanishing)
    assert list(list_inputs(root, JPG).sizes) == ["1.jpg"]


def test_storage_still_writes_beside_hidden_names(tmp_path):
    """Only input is chosen by its name; files of the project itself may be called anything."""
    from pipeline.storage import list_files

    write_bytes(str(tmp_path / ".a" / "b.json"), b"1")
    assert list_files(str(tmp_path), ".json") == [str(tmp_path / ".a" / "b.json")]
