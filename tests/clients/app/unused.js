// Imports that are not used leave nothing in a bundle.
import { Oyez, OyezError } from 'oyez';
import { useChannel } from 'oyez/react';

console.log('nothing');
