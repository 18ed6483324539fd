// Runs both orders of one client: node run.mjs CLIENT BASE_URL KEY < picture.png
// Prints the two images as a JSON list of hex.
import { buffer } from "node:stream/consumers";

const [name, baseUrl, key] = process.argv.slice(2);
const client = await import(`./clients/${name}.mjs`);
const picture = await buffer(process.stdin);
const images = [
  await client.textToImage(baseUrl, key, `a red fox by ${name} in Node`),
  await client.imageToImage(baseUrl, key, `a blue fox by ${name} in Node`, picture),
];
process.stdout.write(JSON.stringify(images.map((image) => Buffer.from(image).toString("hex"))));
