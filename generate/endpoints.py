"""The JSON interface: from a request's checked fields to the data of its answer.

    GET  /about        what the run can do
    POST /sample       {"num", "seed", "temperature", "top_k", "top_p", "source", "noise_scale", "guidance", "prefix"}
                       → {"sentences": [{"text", "nll", "critic_score" if the run has a critic}]}
    POST /reconstruct  {"sentences"} → {"sentences": [{"text", "rebuilt", "bleu", "nll", "num_targets"}]}
    POST /interpolate  {"a", "b", "walk", "num"}
                       → {"ended", "points": [{"step", "text", "nll_start": [one per step], "nll_end": [one per step]}]}
    POST /nearest      {"sentence", "num"} → {"neighbours": [{"row", "cosine", "text"}]}
"""

import threading
from collections.abc import Callable
from typing import Any

from generate.batcher import ANSWER_SEC, Batcher, Busy
from generate.options import BY_NAME
from outlines.decoding.sample import SamplingConfig
from outlines.errors import OutlinesError
from outlines.inference.pipeline import Pipeline

MAX_SENTENCES = int(BY_NAME["num"].max_served)
MAX_CHARACTERS = 1000


class Fields:
    """The fields of a request, each checked as it is read; raises OutlinesError."""

    def __init__(self, data: Any):
        if not isinstance(data, dict):
            raise OutlinesError("The request must be a JSON object.")
        self._data = dict(data)

    def number(self, name: str) -> Any:
        """A number within the bounds of the option `name`, or the option's default."""
        option, key = BY_NAME[name], name.partition("/")[0]
        value = self._data.pop(key, option.default)
        if not option.is_valid(value, served=True):
            raise OutlinesError(f"{key} must be {option.bounds(served=True)}.")
        return option.type(value)

    def text(self, name: str, default: str | None = None) -> str:
        value = self._data.pop(name, default)
        if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
            raise OutlinesError(f"{name} must be a text of at most {MAX_CHARACTERS} characters.")
        if any("\ud800" <= character <= "\udfff" for character in value):  # valid in JSON, not in UTF-8
            raise OutlinesError(f"{name} contains a lone surrogate. Send complete characters.")
        return value

    def texts(self, name: str) -> list[str]:
        values = self._data.pop(name, None)
        if not isinstance(values, list) or not 0 < len(values) <= MAX_SENTENCES:
            raise OutlinesError(f"{name} must be a list of 1 to {MAX_SENTENCES} texts.")
        return [Fields({name: value}).text(name) for value in values]

    def end(self) -> None:
        """Refuse fields that were not read."""
        if self._data:
            raise OutlinesError(f"Unknown field {next(iter(self._data))!r}.")


class Endpoints:
    """What each path does: fields in, JSON data out."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self.batcher = Batcher(pipeline.tokens)
        self._turn = threading.Lock()

    def about(self) -> dict[str, Any]:
        pipeline, model = self.pipeline, self.pipeline.model
        return {"run": pipeline.run.name, "family": model.family, "sources": list(model.sources),
                "walks": list(pipeline.walks), "neighbours": model.frozen_encoder() is not None,
                "noise": model.decoder.config.vector_dim > 0, "guided": model.decoder.config.vector_dropout > 0,
                "max_sentences": MAX_SENTENCES}

    def sample(self, fields: Fields) -> dict[str, Any]:
        num, seed = fields.number("num"), fields.number("seed")
        config = SamplingConfig(**{name: fields.number(name) for name in
                                   ("temperature", "top_k", "top_p", "noise_scale", "guidance")})
        source, prefix = fields.text("source", ""), fields.text("prefix", "")
        fields.end()
        draw, tokens = self.pipeline.source(source or None, config), self.pipeline.prefix_tokens(prefix)
        vectors, uniforms = self.pipeline.model.draw_rows(draw, 0, num, seed, config.max_len)
        ids = self.batcher.decode(vectors, uniforms, config, tokens)
        return {"sentences": [{name: value for name, value in sentence._asdict().items() if value is not None}
                              for sentence in self.pipeline.written(ids, vectors, scored=True)]}

    def reconstruct(self, fields: Fields) -> dict[str, Any]:
        sentences = fields.texts("sentences")
        fields.end()
        return {"sentences": [done._asdict() for done in self._in_turn(lambda: self.pipeline.reconstruct(sentences))]}

    def interpolate(self, fields: Fields) -> dict[str, Any]:
        a, b, walk = fields.text("a"), fields.text("b"), fields.text("walk", "spherical")
        num = fields.number("num/walk")
        fields.end()
        made = self._in_turn(lambda: self.pipeline.interpolate(a, b, walk, num))
        return {"ended": made.ended, "points": [point._asdict() for point in made.points]}

    def nearest(self, fields: Fields) -> dict[str, Any]:
        sentence, num = fields.text("sentence"), fields.number("num/nearest")
        fields.end()
        return {"neighbours": [near._asdict() for near in self._in_turn(lambda: self.pipeline.nearest([sentence], num))[0]]}

    def _in_turn(self, work: Callable[[], Any]) -> Any:
        """Run work that cannot be batched, one request at a time, so that it does not use every core."""
        if not self._turn.acquire(timeout=ANSWER_SEC):
            raise Busy("The server is busy.")
        try:
            return work()
        finally:
            self._turn.release()
