"""Beats inside a test's process, on its Redis and a database of their own."""

import asyncio
import json
from datetime import UTC, datetime

from gaelp_beat.scheduler import Scheduler
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.schedules import Schedules, Timetable
from gaelp_tasks.models.schedule import Schedule
from gaelp_tasks.queues import lists
from gaelp_tasks.settings import Settings
from support.eventually import eventually


def now():
    return datetime.now(UTC)


def fixed(name, every_s, **more):
    """Entries of beat_schedule."""
    return {name: {"task": "shop.count", "schedule": every_s, "options": {"queue": "shop"}, **more}}


class Place:
    """A Redis, a database, and any number of beats in this process."""

    def __init__(self, url, folder, **settings):
        self.settings = Settings(broker_url=url, database_url=f"sqlite:///{folder / 'gaelp.db'}", **settings)
        self._loop = asyncio.Runner()
        self._db = Database(self.settings.sql_url)
        self._loop.run(self._db.migrate())
        self._beats = []
        self.app = self._app({})
        self.redis, self.keys = self.app.redis, self.app.keys

    def _app(self, entries):
        made = GaelpApp(self.settings)
        made.conf.beat_schedule = entries
        return made

    def ask(self, question, tenant=""):
        return self._loop.run(question(Schedules(self._db, tenant)))

    def timetable(self, question):
        return self._loop.run(question(Timetable(self._db)))

    def add(self, tenant="", **given):
        timing = {} if {"cron", "at"} & given.keys() else {"interval_s": 1}
        schedule = Schedule.parse({"name": "x", "task": "shop.count", "queue": "shop", **timing, **given})
        return self.ask(lambda schedules: schedules.add(schedule, now()), tenant)

    def change(self, name, **given):
        there = self.find(name).schedule
        new = Schedule.parse(there.model_dump() | given)
        return self.ask(lambda schedules: schedules.change(name, new, now()))

    def find(self, name="x"):
        return self.ask(lambda schedules: schedules.find(name))

    def beat(self, entries=None):
        made = Scheduler(self._app(entries or {}))
        self._beats.append(made)
        return made

    def published(self, queue="shop"):
        """Every message in the queue, the first first."""
        places = map(self.keys.queue, lists(queue))
        return [json.loads(text) for key in places for text in reversed(self.redis.lrange(key, 0, -1))]

    def ids(self, queue="shop"):
        return [message["headers"]["id"] for message in self.published(queue)]

    def close(self):
        for beat in self._beats:
            beat.close()
        self._loop.run(self._db.close())
        self._loop.close()
        self.redis.close()


def ticking(*beats, until, within_s=20.0):
    """Have these beats tick in turn until something is true."""

    def step():
        for beat in beats:
            beat.tick()
        return until()

    return eventually(step, within_s=within_s)
