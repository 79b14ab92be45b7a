"""The one ClientApp of the project: every phase of every strategy, on every engine, comes through here.

Flower loads it out of the bundle by the bare name `client.app`; all else is imported as `umbel`, so it holds nothing.
"""

from flwr.clientapp import ClientApp

from umbel.client.handlers import agree, hello, phase

app = ClientApp()
app.query()(hello)
app.query("agree")(agree)
app.train()(phase)
app.evaluate()(phase)
