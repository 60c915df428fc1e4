// The judge of GGUF files: llama.cpp, as node-llama-cpp builds it.
//
// node gguf_llama.mjs FOLDER   FOLDER/node_modules holds node-llama-cpp; standard input {"path",
//   "prompts": [...], "new": N}: prints {"ids": of each prompt, "new_ids": N greedy tokens of each}

import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import path from "node:path";
import fs from "node:fs";

const require = createRequire(path.join(process.argv[2], "node_modules", "x.js"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

const job = JSON.parse(fs.readFileSync(0, "utf8"));
const llama = await getLlama({build: "never", gpu: false, maxThreads: 1, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: job.path});
const out = {ids: [], new_ids: []};
for (const prompt of job.prompts) {
    const context = await model.createContext({contextSize: job.context, sequences: 1, flashAttention: false});
    const bos = model.tokens.bos;
    const ids = [bos, ...model.tokenize(prompt, true)];
    const made = [];
    for await (const token of context.getSequence().evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        made.push(token);
        if (made.length >= job.new || model.isEogToken(token))
            break;
    }
    out.ids.push(ids);
    out.new_ids.push(made);
    await context.dispose();
}
console.log(JSON.stringify(out));
process.exit(0);
