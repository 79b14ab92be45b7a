"""The ServerApp. Flower loads it out of the bundle by the bare name `server.app`, so it holds nothing."""

from flwr.serverapp import ServerApp

from umbel.server.flower.submitted import run

app = ServerApp()
app.main()(run)
