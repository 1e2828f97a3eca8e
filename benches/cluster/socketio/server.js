// A Socket.IO node with the Redis Streams adapter: what a client emits goes to all clients of all nodes, and is
// acknowledged.
//
//   node server.js PORT REDIS-URL
import { createServer } from 'node:http';
import { createAdapter } from '@socket.io/redis-streams-adapter';
import { createClient } from 'redis';
import { Server } from 'socket.io';

const [port, url] = process.argv.slice(2);
const client = createClient({ url });
// Without a handler an error of the connection ends the process; node-redis reconnects by itself.
client.on('error', () => {});
await client.connect();
const http = createServer();
const io = new Server(http, {
  adapter: createAdapter(client),
  transports: ['websocket'],
  connectionStateRecovery: {},
});
io.on('connection', (socket) => {
  socket.on('publish', (text, acknowledge) => {
    io.emit('m', text);
    acknowledge?.();
  });
});
http.listen(Number(port), '127.0.0.1', () => console.log(`listening on ws://127.0.0.1:${port}`));
