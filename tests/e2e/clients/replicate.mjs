import Replicate from "replicate";

export const textToImage = (baseUrl, key, prompt) => run(baseUrl, key, { prompt });

// the client uploads the buffer as a file
export const imageToImage = (baseUrl, key, prompt, image) => run(baseUrl, key, { prompt, image_input: [image] });

async function run(baseUrl, key, input) {
  const replicate = new Replicate({ auth: key, baseUrl: `${baseUrl}/v1`, useFileOutput: false });
  const output = await replicate.run("google/nano-banana", { input });
  return Buffer.from(await (await fetch([output].flat()[0])).arrayBuffer());
}
