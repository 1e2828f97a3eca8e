// The hook without React itself.
export { useChannel } from 'oyez/react';
