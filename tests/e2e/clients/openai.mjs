import OpenAI, { toFile } from "openai";

export async function textToImage(baseUrl, key, prompt) {
  const client = new OpenAI({ apiKey: key, baseURL: `${baseUrl}/v1` });
  return imageOf(await client.images.generate({ model: "gpt-image-2", prompt, size: "1536x1024" }));
}

export async function imageToImage(baseUrl, key, prompt, image) {
  const client = new OpenAI({ apiKey: key, baseURL: `${baseUrl}/v1` });
  const file = await toFile(image, "picture.png", { type: "image/png" });
  return imageOf(await client.images.edit({ model: "gpt-image-2", prompt, image: [file] }));
}

const imageOf = (answer) => Buffer.from(answer.data[0].b64_json, "base64");
