from jobs.bench_contrast import BenchContrastJob, run
from pipeline.models.encoder import EncoderSettings
from pipeline.views import ViewSettings


def test_micro_batches_need_less_memory(capsys):
    settings = BenchContrastJob(
        batch_sizes=(256,), micro_batch=16, crop_size=32, views=ViewSettings(size=32), encoder=EncoderSettings(width=16)
    )
    result = run(settings)
    whole, cached, chunked = (row["peak_mib"] for row in result["steps"])
    if result["device"] == "cpu":
        assert cached < 0.7 * whole
    assert chunked > 0
    printed = capsys.readouterr().out
    assert f"| 256 | 512 | {whole} |" in printed
