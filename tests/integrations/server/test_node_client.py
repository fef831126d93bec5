"""The unmodified npm package of OpenAI under node; found where node finds packages (``NODE_PATH``, ``node_modules``)."""

import json
import shutil
import subprocess
from typing import Any

import pytest

from tests.integrations.server.conftest import MODEL, Served

NODE = shutil.which("node")
if NODE is None:
    pytest.skip("needs node, which is not installed", allow_module_level=True)
if subprocess.run([NODE, "-e", "require.resolve('openai')"], capture_output=True, check=False).returncode:
    pytest.skip("needs the npm package openai where node finds it (NODE_PATH)", allow_module_level=True)

CLIENT = """
const {OpenAI} = require("openai");
const {url, key, model} = JSON.parse(process.argv[1]);
const client = new OpenAI({baseURL: url + "/v1", apiKey: key, maxRetries: 0});
const messages = [{role: "user", content: "What is my dog called?"}];
const told = {};
(async () => {
  told.models = (await client.models.list()).data.map(one => one.id);
  const whole = await client.chat.completions.create({model, messages, max_tokens: 6, memory: "anna"});
  told.answer = whole.choices[0].message.content;
  told.tokens = whole.usage.total_tokens;
  told.recalled = whole.mplus.recalled.map(one => one.source);
  const stream = await client.chat.completions.create({model, messages, max_tokens: 6, memory: "anna", stream: true});
  told.pieces = 0;
  told.streamed = "";
  for await (const piece of stream) {
    told.pieces += 1;
    told.streamed += piece.choices[0]?.delta?.content ?? "";
  }
  const schema = {type: "object", properties: {name: {enum: ["Biscuit", "Waffle"]}}, required: ["name"]};
  const response_format = {type: "json_schema", json_schema: {name: "dog", schema}};
  const formed = await client.chat.completions.create({model, messages, response_format, max_tokens: 64, memory: "anna"});
  told.formed = JSON.parse(formed.choices[0].message.content);
  try {
    await client.chat.completions.create({model: "gpt-nope", messages});
  } catch (error) {
    told.error = [error.constructor.name, error.status, error.code];
  }
  console.log(JSON.stringify(told));
})();
"""


def test_the_npm_client_asks_streams_and_hears_of_errors(served: Served) -> None:
    with served.client() as http:
        body = {"text": "My dog is called Biscuit. " * 8, "source": "dog"}
        http.post("/v1/memories/anna/write", json=body).raise_for_status()
    given = json.dumps({"url": served.url, "key": "sk-anna", "model": MODEL})
    assert NODE is not None
    done = subprocess.run([NODE, "-e", CLIENT, given], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["models"] == [MODEL] and told["tokens"] > 0 and told["recalled"] == ["dog"]
    assert told["streamed"] == told["answer"] and told["pieces"] > 1
    assert told["formed"]["name"] in ("Biscuit", "Waffle")
    assert told["error"] == ["NotFoundError", 404, "model_not_found"]
