import { createOpenAI } from "@ai-sdk/openai";
import { generateImage } from "ai";

export const textToImage = (baseUrl, key, prompt) => generate(baseUrl, key, prompt);

export const imageToImage = (baseUrl, key, prompt, image) => generate(baseUrl, key, { text: prompt, images: [image] });

async function generate(baseUrl, key, prompt) {
  const openai = createOpenAI({ apiKey: key, baseURL: `${baseUrl}/v1` });
  const { image } = await generateImage({ model: openai.image("gpt-image-2"), prompt, maxRetries: 0 });
  return image.uint8Array;
}
