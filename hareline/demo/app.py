"""The app of the workers for the jobs that ship, as a service would write it."""

from __future__ import annotations

from consumers.jobs import email, http, media
from hareline.app import App
from hareline.demo.contracts import make_thumbnail, send_email, sync_document
from topology.settings import Settings

_extra = Settings.from_env().extra

app = App(job_types=[send_email, make_thumbnail, sync_document])
email.register(app, email.SmtpServer.from_settings(_extra), send_email)
media.register(app, media.MediaRoot.from_settings(_extra), make_thumbnail)
http.register(app, http.HttpApi.from_settings(_extra), sync_document)
