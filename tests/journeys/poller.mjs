// A front end of the old days, word for word what browsers run: FormData, fetch, a look every three seconds.
//
//     node poller.mjs BASE ORIGIN MODE PROMPT [IMAGE]
//
// It prints how it ended, as JSON. Of an answer it may read five things; reading anything else is an error.

import { readFile } from "node:fs/promises";

const [base, origin, mode, prompt, image] = process.argv.slice(2);

const MAY_READ = { error: true, taskId: true, data: { status: true, error: true, generation: { url: true } } };

// -- what the browser does

function guarded(value, keys) {
  if (value === null || typeof value !== "object" || keys === true) return value;
  return new Proxy(value, {
    get(target, key) {
      if (key === "then") return undefined; // every await asks for it
      if (!(key in keys)) throw new Error(`the old front end never read ${String(key)}`);
      return guarded(target[key], keys[key]);
    },
  });
}

// A page is sent with its origin, and the answer is hidden from it unless the server says that this origin may see it.
async function browserFetch(path, options = {}) {
  const headers = { Origin: origin, "Sec-Fetch-Site": "cross-site" };
  const response = await fetch(new URL(path, base), { ...options, headers });
  if (response.headers.get("access-control-allow-origin") !== origin) throw new TypeError("Failed to fetch");
  return { ok: response.ok, json: async () => guarded(await response.json(), MAY_READ), blob: () => response.blob() };
}

// -- what the page does

async function generate() {
  const form = new FormData();
  form.append("prompt", prompt);
  form.append("model", "nano-banana");
  form.append("mode", mode);
  form.append("aspectRatio", "1:1");
  form.append("steps", "30");
  if (image) form.append("image", new Blob([await readFile(image)], { type: "image/png" }), "reference.png");

  const response = await browserFetch("/api/generate/image", { method: "POST", body: form });
  const created = await response.json();
  if (!response.ok) throw new Error(created.error);

  for (let poll = 0; poll < 60; poll++) {
    await new Promise((resume) => setTimeout(resume, 3000));
    const looked = await browserFetch(`/api/task/${created.taskId}`);
    if (!looked.ok) continue;
    const task = await looked.json();
    if (task.data.status === "completed") return task.data.generation.url;
    if (task.data.status === "failed") throw new Error(task.data.error);
  }
  throw new Error("Still not done.");
}

try {
  const url = await generate();
  const picture = await (await browserFetch(url)).blob(); // as <img crossorigin> and canvas do
  console.log(JSON.stringify({ url, bytes: picture.size, type: picture.type }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
