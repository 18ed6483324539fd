import { GoogleGenAI } from "@google/genai";

export const textToImage = (baseUrl, key, prompt) => generate(baseUrl, key, [{ text: prompt }]);

export const imageToImage = (baseUrl, key, prompt, image) =>
  generate(baseUrl, key, [{ text: prompt }, { inlineData: { mimeType: "image/png", data: image.toString("base64") } }]);

async function generate(baseUrl, key, parts) {
  const ai = new GoogleGenAI({ apiKey: key, httpOptions: { baseUrl } });
  const answer = await ai.models.generateContent({ model: "gemini-2.5-flash-image", contents: [{ role: "user", parts }] });
  const part = answer.candidates[0].content.parts.find((one) => one.inlineData);
  return Buffer.from(part.inlineData.data, "base64");
}
