"""The report of a search, drawn from the command line."""

from pathlib import Path

import pytest

from jobs import campaign_report
from pipeline.errors import SettingsError
from tests.campaign.made_up_searches import records_of, write_search


def test_the_search_may_stand_first(tmp_path):
    folder = write_search(tmp_path / "search-1", records_of(3))
    for arguments in ([folder], ["--run", folder]):
        result = campaign_report.run(campaign_report.JOB.load(arguments))
        assert result == {"report": f"{folder}/report.html"}
        page = Path(result["report"])
        assert "<h1>search-1</h1>" in page.read_text()
        page.unlink()
    with pytest.raises(SettingsError, match="setting 'run' is required"):
        campaign_report.JOB.load([])
