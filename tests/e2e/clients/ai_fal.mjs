import { createFal } from "@ai-sdk/fal";
import { generateImage } from "ai";

export const textToImage = (baseUrl, key, prompt) => generate(baseUrl, key, "fal-ai/nano-banana", prompt);

export const imageToImage = (baseUrl, key, prompt, image) =>
  generate(baseUrl, key, "fal-ai/nano-banana/edit", prompt, {
    image_urls: [`data:image/png;base64,${image.toString("base64")}`],
  });

async function generate(baseUrl, key, app, prompt, options = {}) {
  const fal = createFal({ apiKey: key, baseURL: `${baseUrl}/fal/run` });
  const { image } = await generateImage({ model: fal.image(app), prompt, maxRetries: 0, providerOptions: { fal: options } });
  return image.uint8Array;
}
