// Loads a bundle with onnxruntime-node and continues a text greedily, the cache handed from pass to pass.
//   npm install onnxruntime-node @huggingface/tokenizers
//   node host.mjs "The capital of France is" 16
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

const [prompt = "The capital of France is", count = "16"] = process.argv.slice(2);
const bundle = dirname(fileURLToPath(import.meta.url));
const manifest = JSON.parse(readFileSync(join(bundle, "edgellm.json"), "utf8"));
const graph = manifest.files.find((file) => file.role === "target" && /\.(onnx|ort)$/.test(file.path)).path;
const folder = dirname(join(bundle, graph));
const read = (name) => (existsSync(join(folder, name)) ? JSON.parse(readFileSync(join(folder, name), "utf8")) : {});

const config = read("config.json");
const tokenizer = new Tokenizer(read("tokenizer.json"), read("tokenizer_config.json"));
const heads = config.num_key_value_heads ?? config.num_attention_heads;
const dim = config.head_dim ?? config.hidden_size / config.num_attention_heads;
const ends = new Set([read("generation_config.json").eos_token_id ?? config.eos_token_id ?? []].flat());

const session = await ort.InferenceSession.create(join(bundle, graph), { executionProviders: ["cpu"], logSeverityLevel: 3 });
const integers = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
const cache = {};
for (const name of session.inputNames.filter((name) => name.startsWith("past_key_values.")))
  cache[name] = new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, dim]);

const prefix = tokenizer.encode(prompt).ids;
const ids = [];
let held = 0;
let next = prefix;
while (ids.length < Number(count)) {
  const total = held + next.length;
  const feeds = { input_ids: integers(next), attention_mask: integers(Array(total).fill(1)), ...cache };
  if (session.inputNames.includes("position_ids")) feeds.position_ids = integers(next.map((_, i) => held + i));
  if (session.inputNames.includes("logits_start"))
    feeds.logits_start = new ort.Tensor("int64", BigInt64Array.from([next.length - 1], BigInt), [1]);
  const out = await session.run(feeds);
  const width = out.logits.dims[2];
  const row = out.logits.data.subarray(out.logits.data.length - width);
  let best = 0;
  for (let token = 1; token < width; token++) if (row[token] > row[best]) best = token;
  for (const name of Object.keys(cache)) cache[name] = out[name.replace("past_key_values", "present")];
  held = total;
  if (ends.has(best)) break;
  ids.push(best);
  next = [best];
}
console.log(JSON.stringify({ prompt: prefix, ids, text: tokenizer.decode(ids) }));
