import { createReplicate } from "@ai-sdk/replicate";
import { generateImage } from "ai";

export const textToImage = (baseUrl, key, prompt) => generate(baseUrl, key, prompt);

// the field of the original model; the SDK's own image inputs are for other models
export const imageToImage = (baseUrl, key, prompt, image) =>
  generate(baseUrl, key, prompt, { image_input: [`data:image/png;base64,${image.toString("base64")}`] });

async function generate(baseUrl, key, prompt, options = {}) {
  const replicate = createReplicate({ apiToken: key, baseURL: `${baseUrl}/v1` });
  const { image } = await generateImage({
    model: replicate.image("google/nano-banana"),
    prompt,
    maxRetries: 0,
    providerOptions: { replicate: options },
  });
  return image.uint8Array;
}
