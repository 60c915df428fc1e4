// Generates with llama.cpp, as node-llama-cpp builds it, for bench/serve.
//
// node serve_llama.mjs FOLDER TYPE=FILE…   FOLDER/node_modules holds node-llama-cpp
//
// Prints {"threads": 1} once the files are loaded. Then for each line of standard input,
// {"type", "texts", "prompt", "tokens", "threads", "seed"}, it generates as many texts at once
// from random prompts, greedily, and prints seconds of the clock and of the processor:
// {"first": until the first token (of one text), "first_cpu", "decode": from there on, "decode_cpu"}.

import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";
import path from "node:path";
import readline from "node:readline";

const require = createRequire(path.join(process.argv[2], "node_modules", "x.js"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);

// Without a limit of its own a context has just the threads that it asks for.
const llama = await getLlama({build: "never", gpu: false, maxThreads: 0, logLevel: LlamaLogLevel.error});
const models = {};
for (const file of process.argv.slice(3)) {
    const at = file.indexOf("=");
    models[file.slice(0, at)] = await llama.loadModel({modelPath: file.slice(at + 1)});
}

const options = {temperature: 0, yieldEogToken: true};
const now = () => {
    const {user, system} = process.cpuUsage();
    return [performance.now() / 1000, (user + system) / 1e6];
};

// A text's prompt, so that no two are alike and none is found in a cache.
function prompt(model, n, seed) {
    let x = (seed * 2654435761 + 12345) >>> 0;
    return Array.from({length: n}, () => {
        x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
        return 3 + (x >>> 8) % 4000;
    });
}

async function generate(q) {
    const model = models[q.type];
    const context = await model.createContext({
        contextSize: q.prompt + q.tokens + 2, sequences: q.texts, threads: q.threads, batchSize: 512,
    });
    // The context's memory is touched before anything is timed.
    const seqs = Array.from({length: q.texts}, () => context.getSequence());
    for await (const _ of seqs[0].evaluate(prompt(model, q.prompt, q.seed + 99), options))
        break;
    await seqs[0].clearHistory();
    const prompts = seqs.map((_, i) => prompt(model, q.prompt, q.seed * q.texts + i));
    if (q.texts > 1)
        for (const [i, s] of seqs.entries())
            await s.evaluateWithoutGeneratingNewTokens(prompts[i].splice(0, q.prompt - 1));
    const begin = now();
    const texts = seqs.map((s, i) => s.evaluate(prompts[i], options));
    const step = () => Promise.all(texts.map(async (t) => {
        if ((await t.next()).done)
            throw new Error("the text ended early");
    }));
    await step();
    const first = now();
    // Texts go on by themselves and meet in the batches, as they do for any user.
    await Promise.all(texts.map(async (t) => {
        for (let n = 0; n < q.tokens; n++)
            if ((await t.next()).done)
                throw new Error("the text ended early");
    }));
    const last = now();
    await Promise.all(texts.map((t) => t.return()));
    const threads = context.currentThreads;
    await context.dispose();
    return {
        first: first[0] - begin[0], first_cpu: first[1] - begin[1],
        decode: last[0] - first[0], decode_cpu: last[1] - first[1], threads,
    };
}

console.log(JSON.stringify({threads: 1}));
for await (const line of readline.createInterface({input: process.stdin}))
    console.log(JSON.stringify(await generate(JSON.parse(line))));
process.exit(0);
