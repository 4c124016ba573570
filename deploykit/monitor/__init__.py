"""Judges the sentiment of a stream: counts by window, what is usual, and whether negatives surge. All of it pure."""

from __future__ import annotations

__all__ = ["Alert", "Judgement", "SurgeRule", "TopicShare", "Window", "WindowPoint", "judge_stream", "windows_of"]

from deploykit.monitor.surge import Alert, Judgement, SurgeRule, TopicShare, WindowPoint, judge_stream
from deploykit.monitor.windows import Window, windows_of
