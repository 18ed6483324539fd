// The official client has fixed hosts; its proxyUrl leads it to the broker.
import { createFalClient } from "@fal-ai/client";

export const textToImage = (baseUrl, key, prompt) => run(baseUrl, key, "fal-ai/nano-banana", { prompt });

export const imageToImage = (baseUrl, key, prompt, image) =>
  run(baseUrl, key, "fal-ai/nano-banana/edit", { prompt, image_urls: [`data:image/png;base64,${image.toString("base64")}`] });

async function run(baseUrl, key, app, input) {
  const fal = createFalClient({ credentials: key, proxyUrl: { url: `${baseUrl}/fal/proxy`, when: "always" } });
  const { data } = await fal.subscribe(app, { input });
  return Buffer.from(await (await fetch(data.images[0].url)).arrayBuffer());
}
