"""Many requests at once on one model: see `Scheduler`."""

from foveate.runtime.scheduler.engine import Limits
from foveate.runtime.scheduler.handle import Handle, Times
from foveate.runtime.scheduler.service import Scheduler
from foveate.runtime.scheduler.statistics import Statistics

__all__ = ["Handle", "Limits", "Scheduler", "Statistics", "Times"]
