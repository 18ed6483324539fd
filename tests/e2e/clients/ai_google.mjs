import { createGoogleGenerativeAI } from "@ai-sdk/google";
import { generateText } from "ai";

export const textToImage = (baseUrl, key, prompt) => generate(baseUrl, key, [{ type: "text", text: prompt }]);

export const imageToImage = (baseUrl, key, prompt, image) =>
  generate(baseUrl, key, [{ type: "text", text: prompt }, { type: "image", image, mediaType: "image/png" }]);

async function generate(baseUrl, key, content) {
  const google = createGoogleGenerativeAI({ apiKey: key, baseURL: `${baseUrl}/v1beta` });
  const answer = await generateText({
    model: google("gemini-2.5-flash-image"),
    providerOptions: { google: { responseModalities: ["TEXT", "IMAGE"] } },
    messages: [{ role: "user", content }],
  });
  return answer.files.find((file) => file.mediaType.startsWith("image/")).uint8Array;
}
